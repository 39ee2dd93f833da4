"""GSM8K preparation, on the real files where they are."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_skills.core.errors import UserError
from nemo_skills.dataset.gsm8k import DEFAULTS
from nemo_skills.dataset.gsm8k.prepare import PREPARATION, convert
from nemo_skills.dataset.preparing import prepare
from nemo_skills.dataset.rows import SourceRow
from nemo_skills.prompt.utils import get_prompt

REPO = Path(__file__).resolve().parents[2]
SPLITS = PREPARATION.splits


def real_file(split: str) -> Path:
    folder = Path(os.environ.get("NS_TEST_DATA") or REPO.parent / "shared" / "data")
    path = folder / f"gsm8k_{split}.jsonl"
    if not path.is_file():
        pytest.skip(f"{path} is absent; NS_TEST_DATA names the folder that holds it")
    return path


@pytest.mark.parametrize("split", SPLITS)
def test_every_real_row_is_prepared(split: str, weird_tmp_path: Path) -> None:
    source = real_file(split)
    prepared = prepare(PREPARATION, split, weird_tmp_path / "new", [source])
    output = prepared.path
    assert prepared.manifest.checked
    assert output == weird_tmp_path / "new" / f"{split}.jsonl"
    rows = [json.loads(line) for line in output.read_text().split("\n")[:-1]]
    originals = [json.loads(line) for line in source.read_text().split("\n")[:-1]]
    assert len(rows) == len(originals) == SPLITS[split].rows
    for row, original in zip(rows, originals, strict=True):
        assert list(row) == ["id", "problem", "expected_answer", "reference_solution"]
        assert row["problem"] == original["question"]
        assert re.fullmatch(r"-?\d+(\.\d+)?", row["expected_answer"])
        assert not re.search(r"<<|>>|####", row["reference_solution"])
        # nothing but annotations and the answer line went away
        assert len(re.sub(r"<<.*?>>", "", original["answer"])) - len(row["reference_solution"]) < 30


def test_prepared_rows_fit_the_default_prompt(weird_tmp_path: Path) -> None:
    split = DEFAULTS.eval_split
    prepared = prepare(PREPARATION, split, weird_tmp_path, [real_file(split)])
    row = json.loads(prepared.path.read_text().split("\n")[0])
    [message] = get_prompt(DEFAULTS.prompt_config).fill(row)
    assert row["problem"] in message["content"]


def test_the_wrong_split_is_recognised(weird_tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"7473 rows, but GSM8K test has 1319.*--split train"):
        prepare(PREPARATION, "test", weird_tmp_path, [real_file("train")])
    assert not list(weird_tmp_path.iterdir())


def test_one_changed_character_is_noticed(weird_tmp_path: Path) -> None:
    changed = weird_tmp_path / "changed.jsonl"
    changed.write_text(real_file("test").read_text().replace("sprints", "springs", 1))
    with pytest.raises(UserError, match="content differs"):
        prepare(PREPARATION, "test", weird_tmp_path / "out", [changed])
    assert not list((weird_tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("answer", "expected", "solution"),
    [
        ("He has 2*3=<<2*3=6>>6.\n#### 6", "6", "He has 2*3=6."),
        ("x\n#### 1,450,000", "1450000", "x"),
        ("x\ny\n#### -3\n", "-3", "x\ny"),
        ("a << b\n#### .5", ".5", "a << b"),
    ],
)
def test_answers(answer: str, expected: str, solution: str) -> None:
    row = SourceRow(values={"question": "q", "answer": answer}, file="f", number=1)
    assert convert(row) == {"problem": "q", "expected_answer": expected, "reference_solution": solution}


def test_answer_without_a_result() -> None:
    row = SourceRow(values={"question": "q", "answer": "It is 3."}, file="f", number=7)
    with pytest.raises(UserError, match=r"f, row 7: .*####"):
        convert(row)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"question": "q"}', "row 2: there is no 'answer'"),
        (b"[1]", "line 3: not a JSON object"),
        (b"{", "line 3: not a JSON object"),
        (b"\xff", "line 3: not a JSON object"),
    ],
)
def test_bad_lines_name_file_and_place(line: bytes, message: str, weird_tmp_path: Path) -> None:
    source = weird_tmp_path / "mine.jsonl"
    source.write_bytes(b'{"question": "q", "answer": "#### 1"}\n\n' + line)
    with pytest.raises(UserError, match=rf"mine\.jsonl, {message}"):
        prepare(PREPARATION, "test", weird_tmp_path / "out", [source])


def run_prepare(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nemo_skills.dataset.gsm8k.prepare", *args]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **env}, timeout=60)


def test_command_line(weird_tmp_path: Path) -> None:
    source = real_file("test")
    ended = run_prepare("--source", str(source), "--output_dir", str(weird_tmp_path))
    assert ended.stdout == f"1319 rows in {weird_tmp_path / 'test.jsonl'}\n"


def test_missing_source_and_unwritable_output(weird_tmp_path: Path) -> None:
    ended = run_prepare("--source", str(weird_tmp_path / "no.jsonl"))
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert "no.jsonl does not exist" in ended.stderr
    (weird_tmp_path / "file").touch()
    ended = run_prepare("--source", str(real_file("test")), "--output_dir", str(weird_tmp_path / "file"))
    assert ended.returncode == 1
    assert "Cannot write" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_without_a_network_one_line_says_what_to_do(weird_tmp_path: Path) -> None:
    # a proxy on a port where nothing listens stands for a machine without a network
    ended = run_prepare("--output_dir", str(weird_tmp_path), https_proxy="http://127.0.0.1:9", no_proxy="")
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1
    assert "--source test.jsonl" in ended.stderr
