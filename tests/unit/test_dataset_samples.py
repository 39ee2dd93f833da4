"""Every benchmark's preparation, on samples in the formats of their origins."""

import dataclasses
import importlib
import json
import re
import shutil
import tarfile
import urllib.request
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

from nemo_skills.core.errors import UserError
from nemo_skills.dataset.livecodebench.tests import pack, unpack, unpack_origin
from nemo_skills.dataset.lookup import get_benchmark, list_benchmarks
from nemo_skills.dataset.manifest import Manifest
from nemo_skills.dataset.preparing import Preparation, Prepared, prepare, run
from nemo_skills.evaluation.graders import GRADERS, get_grader
from nemo_skills.prompt.utils import get_prompt
from tests.golden_files import assert_golden

SAMPLES = Path(__file__).parents[1] / "data" / "benchmarks"
FILES = {
    "aime24": "aime24.jsonl",
    "aime25": "aime25",
    "amc23": "amc23.jsonl",
    "arc-challenge": "arc",
    "arc-easy": "arc",
    "asdiv": "asdiv.xml",
    "gpqa": "gpqa",
    "gsm8k": "gsm8k.jsonl",
    "hellaswag": "hellaswag.jsonl",
    "human-eval": "human-eval",
    "ifeval": "ifeval.jsonl",
    "livecodebench": "livecodebench.jsonl",
    "math": "math",
    "math-500": "math-500.jsonl",
    "mawps": "mawps",
    "mbpp": "mbpp-plus.jsonl",
    "minerva-math": "minerva-math.jsonl",
    "mmlu": "mmlu",
    "mmlu-pro": "mmlu-pro.jsonl",
    "olympiadbench": "olympiadbench.jsonl",
    "svamp": "svamp.json",
}


def preparation_of(name: str) -> Preparation:
    folder = get_benchmark(name).folder.name
    found: Preparation = importlib.import_module(f"nemo_skills.dataset.{folder}.prepare").PREPARATION
    # samples are not the real thing, which gsm8k would notice
    splits = {key: dataclasses.replace(split, sha256=None) for key, split in found.splits.items()}
    return dataclasses.replace(found, splits=splits)


def prepare_sample(name: str, output: Path, source: Path | None = None, split: str | None = None) -> Prepared:
    preparation = preparation_of(name)
    sources = [source or SAMPLES / FILES[name]]
    return prepare(preparation, split or preparation.defaults.eval_split, output, sources)


def rows_of(prepared: Prepared) -> list[dict[str, Any]]:
    return [json.loads(line) for line in prepared.path.read_text(encoding="utf-8").splitlines()]


def test_no_benchmark_is_left_out() -> None:
    assert set(FILES) == set(list_benchmarks())


@pytest.mark.parametrize("name", FILES)
def test_sample_becomes_rows(name: str, weird_tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepared = prepare_sample(name, weird_tmp_path / name)
    assert_golden(f"benchmarks/{name}.jsonl", prepared.path.read_text(encoding="utf-8"))

    benchmark, rows = get_benchmark(name), rows_of(prepared)
    assert prepared.path == benchmark.data_path(weird_tmp_path)
    assert len({row["id"] for row in rows}) == len(rows)
    for row in rows:
        [message] = get_prompt(benchmark.defaults.prompt_config).fill(row)
        assert row["problem"] in message["content"]
        assert all(field in row for field in benchmark.defaults.group_by)
    assert benchmark.defaults.grader in GRADERS

    manifest = Manifest.read(prepared.path)
    assert manifest == prepared.manifest
    assert manifest.describes(prepared.path)
    assert (manifest.benchmark, manifest.rows, manifest.checked) == (name, len(rows), False)
    assert manifest.known_rows == benchmark.defaults.rows
    prepared.warn()
    assert f"has {len(rows)} rows, but {name}" in capsys.readouterr().err
    assert {path.name for path in prepared.path.parent.iterdir()} == {
        prepared.path.name, f"{prepared.path.stem}.manifest.json"
    }  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_without_a_network_one_line_says_what_to_do(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # a proxy on a port where nothing listens stands for a machine without a network
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setattr(urllib.request, "_opener", None)
    preparation = preparation_of(name)
    for split in preparation.splits:
        with pytest.raises(SystemExit) as ended:
            run(preparation, ["--split", split, "--output_dir", str(tmp_path / "out")])
        error = capsys.readouterr().err
        assert (ended.value.code, error.count("\n")) == (1, 1)
        assert re.search(r"cannot download https://.*pass it with --source ", error)
        assert not list((tmp_path / "out").iterdir())


def archive(name: str, folder: Path) -> Path:
    """Pack a sample as its authors do."""
    source = SAMPLES / name
    if name == "arc":
        path = folder / "ARC.zip"
        with ZipFile(path, "w") as packed:
            for file in source.rglob("*.jsonl"):
                packed.write(file, file.relative_to(source))
        return path
    path = folder / f"{name}.tar"
    with tarfile.open(path, "w") as tar:
        for child in source.iterdir():
            tar.add(child, child.name)
    return path


@pytest.mark.parametrize(
    ("name", "sample"), [("math", "math"), ("mmlu", "mmlu"), ("arc-easy", "arc"), ("arc-challenge", "arc")]
)
def test_archives_are_read_as_they_are(name: str, sample: str, tmp_path: Path) -> None:
    from_folder = prepare_sample(name, tmp_path / "folder")
    from_archive = prepare_sample(name, tmp_path / "archive", archive(sample, tmp_path))
    assert from_archive.manifest.sha256 == from_folder.manifest.sha256


def test_archive_with_a_password(tmp_path: Path) -> None:
    from_folder = prepare_sample("gpqa", tmp_path / "folder", SAMPLES / "gpqa" / "dataset")
    from_archive = prepare_sample("gpqa", tmp_path / "archive", SAMPLES / "gpqa" / "dataset.zip")
    assert from_archive.manifest.sha256 == from_folder.manifest.sha256


def test_a_part_of_an_archive_lacks_the_split(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no file that matches"):
        prepare_sample("math", tmp_path / "out", SAMPLES / "math" / "MATH" / "train")
    assert not (tmp_path / "out" / "test.jsonl").exists()


def test_parquet_with_pyarrow_and_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [json.loads(line) for line in (SAMPLES / "mmlu-pro.jsonl").read_text().splitlines()]
    source = tmp_path / "test-00000-of-00001.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), source)
    from_parquet = prepare_sample("mmlu-pro", tmp_path / "a", source)
    assert from_parquet.manifest.sha256 == prepare_sample("mmlu-pro", tmp_path / "b").manifest.sha256

    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(UserError, match="pip install pyarrow"):
        prepare_sample("mmlu-pro", tmp_path / "c", source)


def test_compressed_and_plain_files_give_the_same(tmp_path: Path) -> None:
    import gzip

    source = tmp_path / "ifeval.jsonl.gz"
    source.write_bytes(gzip.compress((SAMPLES / "ifeval.jsonl").read_bytes()))
    packed = prepare_sample("ifeval", tmp_path / "a", source)
    assert packed.manifest.sha256 == prepare_sample("ifeval", tmp_path / "b").manifest.sha256


# --- what belongs to one benchmark


def test_gpqa_orders_options_by_the_question_alone(tmp_path: Path) -> None:
    rows = {row["id"]: row for row in rows_of(prepare_sample("gpqa", tmp_path / "all"))}
    one = tmp_path / "gpqa_diamond.csv"
    lines = (SAMPLES / "gpqa" / "dataset" / "gpqa_diamond.csv").read_text().splitlines(keepends=True)
    one.write_text(lines[0] + lines[-1])
    [alone] = rows_of(prepare_sample("gpqa", tmp_path / "one", tmp_path))
    assert alone == rows["recC3"]
    right = {"recA1": "the photon", "recB2": "thymine", "recC3": "argon"}
    for key, row in rows.items():
        assert row["options"]["ABCD".index(row["expected_answer"])] == right[key]
        assert f"{row['expected_answer']}) {right[key]}" in row["choices"]


def test_reference_solutions_of_code_pass_their_tests(tmp_path: Path) -> None:
    samples = [("human-eval", None, None), ("mbpp", None, None), ("mbpp", "mbpp.jsonl", "test")]
    for number, (name, file, split) in enumerate(samples):
        prepared = prepare_sample(name, tmp_path / str(number), file and SAMPLES / file, split)
        for row in rows_of(prepared):
            program = f"{row['preamble']}\n{row['reference_solution']}\n"
            for test in filter(None, (row["test"], row["plus_test"])):
                exec(program + test, {})
                wrong = program + f"\ndef {row['entry_point']}(*_):\n    return None\n"
                with pytest.raises(AssertionError):
                    exec(wrong + test, {})


def test_mbpp_test_split_is_a_range_of_tasks(tmp_path: Path) -> None:
    rows = rows_of(prepare_sample("mbpp", tmp_path, SAMPLES / "mbpp.jsonl", "test"))
    assert [row["id"] for row in rows] == ["Mbpp/11", "Mbpp/510"]


def test_human_eval_needs_both_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"HumanEval/0 is in one file only.*both needed"):
        prepare_sample("human-eval", tmp_path, SAMPLES / "human-eval" / "HumanEval.jsonl.gz")


def test_livecodebench_has_public_and_hidden_tests(tmp_path: Path) -> None:
    double, total = rows_of(prepare_sample("livecodebench", tmp_path))
    assert unpack(double["tests"]) == [
        {"input": "3\n", "output": "6\n"}, {"input": "10\n", "output": "20\n"}
    ]  # fmt: skip
    assert (double["test_type"], double["entry_point"]) == ("stdin", None)
    assert (total["test_type"], total["entry_point"]) == ("functional", "total")
    assert "def total" in total["format_note"]


def test_pickles_that_would_run_code_are_refused() -> None:
    import base64
    import pickle
    import zlib

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (print, ("never",))

    with pytest.raises(ValueError, match=r"builtins\.print"):
        unpack_origin(base64.b64encode(zlib.compress(pickle.dumps(Evil()))).decode())
    assert unpack(pack([])) == []


# --- mistakes


@pytest.mark.parametrize(
    ("name", "file", "old", "new", "message"),
    [
        ("gsm8k", "gsm8k.jsonl", '"question"', '"Question"', r"row 1: there is no 'question'.*'Question'"),
        ("math-500", "math-500.jsonl", '"level": 3', '"level": "hard"', "row 2: not as MATH-500's authors"),
        ("ifeval", "ifeval.jsonl", '[{"num', '[{}, {"num', "row 2: 'kwargs' should have one entry"),
        (
            "mmlu-pro",
            "mmlu-pro.jsonl",
            '"answer": "C"',
            '"answer": "K"',
            "row 1: there is no option number 11",
        ),
        ("hellaswag", "hellaswag.jsonl", '"label": 2', '"label": ""', "'label' should be the number"),
        ("svamp", "svamp.json", "{", "[", "svamp.json: not JSON"),
        ("asdiv", "asdiv.xml", "</Problem>", "", "asdiv.xml: not XML"),
        ("aime24", "aime24.jsonl", '{"id": 61', "[", "aime24.jsonl, line 2: not a JSON object"),
    ],
)
def test_files_that_are_not_as_they_should_be(
    name: str, file: str, old: str, new: str, message: str, tmp_path: Path
) -> None:
    source = tmp_path / file
    text = (SAMPLES / file).read_text()
    assert old in text
    source.write_text(text.replace(old, new))
    with pytest.raises(UserError, match=message):
        prepare_sample(name, tmp_path / "out", source)
    assert not list((tmp_path / "out").iterdir())


def test_unknown_format_and_damaged_archive(tmp_path: Path) -> None:
    shutil.copy(SAMPLES / "aime24.jsonl", tmp_path / "aime.txt")
    with pytest.raises(UserError, match=r"its format is not known.*\.jsonl"):
        prepare_sample("aime24", tmp_path / "out", tmp_path / "aime.txt")
    (tmp_path / "MATH.tar").write_bytes(b"no archive")
    with pytest.raises(UserError, match=r"cannot read .*MATH\.tar"):
        prepare_sample("math", tmp_path / "out", tmp_path / "MATH.tar")


# --- with the graders


@pytest.mark.parametrize(
    "name", [name for name in FILES if name not in {"human-eval", "mbpp", "livecodebench"}]
)
def test_reference_answers_are_graded_correct(name: str, tmp_path: Path) -> None:
    grader = get_grader(get_benchmark(name).defaults.grader)
    grader.warm_up()
    for row in rows_of(prepare_sample(name, tmp_path)):
        right, wrong = [
            f"The answer is $\\boxed{{{answer}}}$." for answer in (row.get("expected_answer"), "Q")
        ]
        if name == "ifeval":
            right = "white walls of stone " * 12
            wrong = "White, tall."
        verdicts = [grader.grade({**row, "generation": text}).verdict for text in (right, wrong, "")]
        assert verdicts[0] == "correct", row
        assert verdicts[1] != "correct", row
        assert verdicts[2] in {"no_answer", "incorrect"}
