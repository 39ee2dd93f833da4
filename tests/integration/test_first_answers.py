"""A model answers a few rows: model, server, generation, table."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_skills.examples.first_answers import show

FIRST_ANSWERS = [sys.executable, "-m", "nemo_skills.examples.first_answers"]


def run_first_answers(folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    own = {k: v for k, v in os.environ.items() if k not in {"MODEL", "INPUT"}}
    return subprocess.run(
        FIRST_ANSWERS,
        cwd=folder,
        env={**own, "COLUMNS": "200", **env},
        capture_output=True,
        text=True,
        timeout=280,
    )


@pytest.mark.service("hf")
def test_it_answers_the_shipped_problems_and_then_others(weird_tmp_path: Path) -> None:
    ended = run_first_answers(weird_tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    output = weird_tmp_path / "quickstart/generation/output.jsonl"
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(rows) == 5
    assert all(row["generation"] and 0 < row["num_generated_tokens"] <= 64 for row in rows)
    assert len({row["generation"] for row in rows}) == 5
    for part in ("Mira picks 24 apples", "quickstart/generation/output.jsonl", "nonsense on purpose"):
        assert part in ended.stdout

    # a second run with another input must not show the first one's rows
    mine = weird_tmp_path / "mine.jsonl"
    mine.write_text('{"problem": "What is [bold]{1 + 1}[/bold]?"}\n')
    ended = run_first_answers(weird_tmp_path, INPUT="mine.jsonl", MODEL="quickstart/model")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "What is [bold]{1 + 1}[/bold]?" in ended.stdout
    assert "Mira" not in ended.stdout
    assert "nonsense" not in ended.stdout


def test_a_missing_input_is_reported_before_anything_is_built(tmp_path: Path) -> None:
    ended = run_first_answers(tmp_path, INPUT="absent.jsonl")
    assert ended.returncode == 2
    assert "absent.jsonl does not exist" in ended.stderr
    assert not list(tmp_path.iterdir())


def test_the_table_shows_texts_as_they_are_but_no_control_characters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    output = tmp_path / "generation" / "output.jsonl"
    output.parent.mkdir()
    row = {"problem": "p" * 300, "generation": "[red]\x1b[2J\\boxed{3}", "num_generated_tokens": 7}
    output.write_text(json.dumps(row) + "\n")
    show(output)
    printed = capsys.readouterr().out
    assert "[red] [2J\\boxed{3}" in printed
    assert "p" * 159 + "…" in printed
    assert "\x1b" not in printed
