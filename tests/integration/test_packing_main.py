"""The packing mains as users start them."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nemo_skills.core.errors import UserError
from nemo_skills.training.packed_files import PackedReader
from nemo_skills.training.tokenise import load_tokenizer, tokenise
from tests.conftest import REPO

pytestmark = pytest.mark.service("train")
LIMIT = 96


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from nemo_skills.examples.tiny_model import build

    return build(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def tokenizer(model: Path) -> Any:
    return load_tokenizer(str(model))


def make_rows(count: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for i in range(count):
        ask, answer = f"What is {i} + {i * 7 % 31}? " * (i % 3 + 1), f"It is {i + i * 7 % 31}." * (i % 7 + 1)
        if i % 4:
            rows.append({"input": ask, "output": answer, "id": i})
        else:
            turns = [{"role": "user", "content": ask}, {"role": "assistant", "content": answer}]
            rows.append({"messages": turns})
    return rows


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def argv(model: Path, files: list[Path], output: Path, **options: Any) -> list[str]:
    names = ",".join(f'"{str(path).replace(chr(34), chr(92) + chr(34))}"' for path in files)
    given = {"pack_sizes": [256], "processes": 2} | options
    more = [f"++{key}={value}" for key, value in given.items()]
    return [
        f"++model.data.train_ds.file_names=[{names}]", f"++model.data.train_ds.max_seq_length={LIMIT}",
        f"++tokenizer_path={model}", f"++output_dir={output}", *more,
    ]  # fmt: skip


def start(arguments: list[str], program: list[str] | None = None) -> "subprocess.CompletedProcess[str]":
    program = program or ["-m", "nemo_skills.training.prepare_packed_ft_dataset"]
    return subprocess.run([sys.executable, *program, *arguments], capture_output=True, text=True, timeout=300)


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The main in this process, which has transformers loaded already."""
    from nemo_skills.training.prepare_packed_ft_dataset import run as main

    code = 0
    try:
        main(arguments)
    except SystemExit as ended:
        code = int(ended.code or 0)
    return code, capsys.readouterr().err


def test_rows_of_both_formats_come_out_of_the_packs(
    model: Path, tokenizer: Any, weird_tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = make_rows(300)
    files = [write(weird_tmp_path / "a.jsonl", rows[:200]), write(weird_tmp_path / "b.jsonl.gz", rows[200:])]
    output = weird_tmp_path / "out"
    arguments = argv(model, files, output, pack_sizes=[128, 256], seed=3)
    script = str(REPO / "nemo_skills" / "training" / "prepare_packed_ft_dataset.py")
    done = start([*arguments, "++model.data.train_ds.hf_dataset=True"], [script])
    assert done.returncode == 0, done.stderr
    examples = [tokenise(row, tokenizer) for row in rows]
    expected = Counter((tuple(e.input_ids[:LIMIT]), tuple(e.loss_mask[:LIMIT])) for e in examples)
    truncated = sum(len(e.input_ids) > LIMIT for e in examples)
    assert 0 < truncated < 300
    assert all(e.cut(LIMIT).trains for e in examples)
    for size in (128, 256):
        reader = PackedReader(output / f"packed_{size}_seed3.npy")
        assert Counter((tuple(s.input_ids), tuple(s.loss_mask)) for p in reader for s in p) == expected
        about = reader.about or {}
        assert (about["counts"]["rows"], about["counts"]["truncated"]) == (300, truncated)
        n = about["quality"]["sequences_per_pack"]
        assert n == round(300 / len(reader), 4)
        assert f"n = {300 / len(reader):.3f}" in done.stderr
    # the same again has nothing to do; with other data the files are made anew
    stamps = {path: path.stat().st_mtime_ns for path in output.iterdir()}
    code, log = run(arguments, capsys)
    assert (code, log.count("there already")) == (0, 2), log
    assert {path: path.stat().st_mtime_ns for path in output.iterdir()} == stamps
    write(files[0], rows[:100])
    assert run(arguments, capsys)[0] == 0
    assert sum(len(p) for p in PackedReader(output / "packed_128_seed3")) == 200


def test_another_chat_template_packs_anew(
    model: Path, tokenizer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    from nemo_skills.training.config import DatasetConfig
    from nemo_skills.training.engine.samples import open_samples

    other = shutil.copytree(model, tmp_path / "other")
    source, output = write(tmp_path / "in.jsonl", make_rows(40)), tmp_path / "out"
    assert run(argv(other, [source], output), capsys)[0] == 0
    before = PackedReader(output / "packed_256_seed0").about or {}
    changed = load_tokenizer(str(other))
    changed.chat_template = changed.chat_template.replace("user", "human") + " "
    changed.save_pretrained(other)
    code, log = run(argv(other, [source], output), capsys)
    assert code == 0 and "there already" not in log, log
    after = PackedReader(output / "packed_256_seed0").about or {}
    assert after["fingerprint"] != before["fingerprint"] and after["vocabulary"] == before["vocabulary"]

    # training takes the packs with any tokenizer of the same vocabulary, and no other
    config = DatasetConfig(file_path=f"{output}/packed_256_seed0.npy", packed_sequence=True)
    assert len(open_samples(config, tokenizer)) == after["fill"]["packs"]
    changed.add_tokens(["<|new|>"])
    with pytest.raises(
        UserError, match=r"packed_256_seed0 was packed with another .*/other .*, not .*/other"
    ):
        open_samples(config, changed)


def test_the_number_of_processes_changes_nothing(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "in.jsonl", make_rows(4000))
    for processes in (1, 3):
        code, log = run(argv(model, [source], tmp_path / str(processes), processes=processes), capsys)
        assert code == 0, log
    one, three = ({path.name: path.read_bytes() for path in (tmp_path / n).iterdir()} for n in ("1", "3"))
    assert one == three and len(one) == 4


def test_long_rows_are_cut_dropped_or_refused_but_always_counted(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"input": "a", "output": "b"},
        {"input": "c", "output": "d" * 500},
        {"input": "e" * 500, "output": "f"},
    ]
    source = write(tmp_path / "in.jsonl", rows)
    counts = {}
    for how in ("truncate", "drop"):
        code, log = run(argv(model, [source], tmp_path / how, long_sequences=how), capsys)
        assert code == 0, log
        reader = PackedReader(tmp_path / how / "packed_256_seed0")
        counts[how] = (reader.about or {})["counts"]
        lengths = sorted(len(s.input_ids) for p in reader for s in p)
        assert max(lengths) <= LIMIT and len(lengths) == counts[how]["sequences"]
    names = ("rows", "sequences", "truncated", "dropped_long", "nothing_to_learn", "skipped")
    assert [counts["truncate"][name] for name in names] == [3, 2, 1, 0, 1, 0]
    assert [counts["drop"][name] for name in names] == [3, 1, 0, 2, 0, 0]
    code, log = run(argv(model, [source], tmp_path / "error", long_sequences="error"), capsys)
    assert code == 2 and f"{source}:2: the row has" in log and "96 are allowed" in log
    assert not list((tmp_path / "error").iterdir())


def test_context_parallel_padding(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "in.jsonl", make_rows(100))
    code, log = run(argv(model, [source], tmp_path, **{"model.context_parallel_size": 4}), capsys)
    assert code == 0, log
    reader = PackedReader(tmp_path / "packed_256_seed0")
    assert all((len(s.input_ids) - 1) % 16 == 0 for p in reader for s in p)
    about = reader.about or {}
    inputs = sum(len(s.input_ids) - 1 for p in reader for s in p)
    assert inputs == about["fill"]["inputs"] == about["counts"]["tokens"] + about["fill"]["padding"]
    learned = sum(int(s.loss_mask.sum()) for p in reader for s in p)
    assert learned == about["counts"]["trained_tokens"]


@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        ("", {}, "there are no rows"),
        ('{"input": "a"}', {}, "in.jsonl:1: a row needs 'input' and 'output'"),
        ('{"input": "a", "output": "b"}\n\n{"inp', {}, "in.jsonl:3: not valid JSON"),
        ('{"input": "a"}', {"on_bad_row": "skip"}, "none of 1 rows is left to pack: 0 truncated.* 1 skipped"),
        ("[1]", {"pack_sizes": [64]}, "pack_sizes=64 is smaller than .*max_seq_length=96"),
        ("[1]", {"pack_sizes": []}, "pack_sizes is empty"),
        (
            "[1]", {"pack_sizes": [250], "model.context_parallel_size": 2},
            "pack_sizes=250 is not a multiple of 16",
        ),
        ("[1]", {"packing_algorithm": "best_fit"}, "packing_algorithm"),
        ("[1]", {"pack_size": 12}, "pack_sizes"),
        ("[1]", {"tokenizer_path": "/no/such/folder"}, "cannot load the tokenizer '/no/such/folder'"),
        ("[1]", {"model.data.train_ds.file_names": "[/no/such.jsonl]"}, "/no/such.jsonl does not exist"),
    ],
)  # fmt: skip
def test_bad_input_is_named(
    lines: str, options: dict[str, Any], message: str, model: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    import re

    source = tmp_path / "in.jsonl"
    source.write_text(lines)
    code, log = run(argv(model, [source], tmp_path / "out", **options), capsys)
    assert code == 2 and re.search(message, log), log
    assert not list((tmp_path / "out").glob("*"))


def test_a_full_disk_is_named_and_leaves_nothing(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, folder = write(tmp_path / "in.jsonl", make_rows(4000)), tmp_path / "small"
    folder.mkdir()
    for size in ("100k", "1100k"):  # too small for the tokens, too small for the packs
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
            pytest.skip("needs the right to mount a tmpfs")
        try:
            code, log = run(argv(model, [source], folder), capsys)
            assert code == 1 and "the disk is full" in log, log
            assert list(folder.iterdir()) == []
        finally:
            subprocess.run(["umount", str(folder)], check=True)


def test_a_killed_run_leaves_nothing_that_looks_complete_and_can_be_repeated(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "in.jsonl", make_rows(4000))
    reference, folder = tmp_path / "reference", tmp_path / "out"
    assert run(argv(model, [source], reference), capsys)[0] == 0
    folder.mkdir()
    program = [sys.executable, "-m", "nemo_skills.training.prepare_packed_ft_dataset"]
    killed = subprocess.Popen([*program, *argv(model, [source], folder)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    # its store of tokens has no name, but is open
    while not _open_files(killed.pid, folder) and time.monotonic() < deadline:
        time.sleep(0.01)
    workers = Path(f"/proc/{killed.pid}/task/{killed.pid}/children").read_text().split()
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert list(folder.iterdir()) == []
    while any(Path(f"/proc/{worker}").exists() for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [worker for worker in workers if Path(f"/proc/{worker}").exists()]
    assert run(argv(model, [source], folder), capsys)[0] == 0
    first, again = ({p.name: p.read_bytes() for p in where.iterdir()} for where in (reference, folder))
    assert first == again


def _open_files(pid: int, folder: Path) -> bool:
    links = []
    for link in Path(f"/proc/{pid}/fd").glob("*"):
        try:
            links.append(str(link.readlink()))
        except OSError:
            continue
    return any(link.startswith(str(folder)) for link in links)


def test_merging_as_a_program(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = make_rows(200)
    for name, part in (("a", rows[:120]), ("b", rows[120:])):
        folder = tmp_path / name
        folder.mkdir()
        assert run(argv(model, [write(folder / "in.jsonl", part)], folder), capsys)[0] == 0
    prefixes = [str(tmp_path / name / "packed_256_seed0") for name in "ab"]
    output = tmp_path / "all" / "packed_256_seed0"
    script = str(REPO / "nemo_skills" / "training" / "merge_packed_data.py")
    done = start(["--input_prefixes", *prefixes, "--output_prefix", str(output)], [script])
    assert done.returncode == 0, done.stderr
    assert len(PackedReader(output)) == sum(len(PackedReader(prefix)) for prefix in prefixes)
    again = ["-m", "nemo_skills.training.merge_packed_data"]
    np.save(f"{prefixes[1]}.loss_mask.npy", np.ones((1, 1), bool))
    failed = start(["--input_prefixes", *prefixes, "--output_prefix", str(output)], again)
    assert failed.returncode == 2 and "do not belong together" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert sum(len(p) for p in PackedReader(output)) == 200
