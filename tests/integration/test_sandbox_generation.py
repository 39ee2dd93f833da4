"""Answers whose code is run while they are written: the real main, sandbox and wrapper, a scripted model."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.generation import read_rows, run_main, running_stub
from tests.integration.sandboxes import SCRIPT, SCRIPTED_ANSWER, RunningSandbox, running_sandbox

CASES: dict[str, tuple[str, tuple[int, int, int]]] = {
    "lasting": (SCRIPTED_ANSWER, (2, 0, 0)),
    "failing": ("It fails.", (1, 1, 0)),
    "endless": ("It takes too long.", (1, 1, 1)),
    "stubborn": ("I give in.", (3, 0, 0)),
    "wordy": ("It is long.", (1, 0, 0)),
    "hasty": ("```python\nprint('last')\n```\n```output\nlast\n```\nThere it is.", (1, 0, 0)),
    "Markdown": ("I quote:\n```text\nsaid\n```\nor\n```\nor so\n```\nand no code.", (0, 0, 0)),
    "plain": ("Nothing to run here.", (0, 0, 0)),
}


@pytest.fixture(scope="module")
def sandbox() -> Iterator[RunningSandbox]:
    with running_sandbox() as running:
        yield running


@pytest.fixture(scope="module")
def stub_url() -> Iterator[str]:
    with running_stub(script=json.dumps(SCRIPT)) as stub:
        yield stub.url


def questions(path: Path, *names: str) -> Path:
    path.write_text("".join(json.dumps({"question": f"the {name} one"}) + "\n" for name in names))
    return path


def counts(row: dict[str, Any]) -> tuple[int, int, int]:
    return row["num_code_executions"], row["num_code_errors"], row["num_code_timeouts"]


@pytest.mark.parametrize("template", [None, "chatml"])
def test_code_runs_and_the_answer_goes_on(
    template: str | None, sandbox: RunningSandbox, stub_url: str, tmp_path: Path
) -> None:
    source, output = questions(tmp_path / "in.jsonl", *CASES), tmp_path / "out.jsonl"
    done = run_main(
        stub_url, source, output, code_execution=True, sandbox_address=sandbox.client.address,
        code_execution_timeout_s=3, max_code_executions=3, prompt_template=template,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for row, (answer, expected) in zip(read_rows(output), CASES.values(), strict=True):
        assert row["generation"].endswith(answer), row
        assert counts(row) == expected, row
        assert row["finish_reason"] == "stop"
        assert "never said" not in row["generation"]
    assert read_rows(output)[0]["generation"] == CASES["lasting"][0]
    assert sandbox.client.health()["sessions"] == 0


def test_tool_calls_in_json(sandbox: RunningSandbox, stub_url: str, tmp_path: Path) -> None:
    source, output = questions(tmp_path / "in.jsonl", "calling", "garbled"), tmp_path / "out.jsonl"
    done = run_main(
        stub_url, source, output, code_execution=True, sandbox_address=sandbox.client.address,
        code_tags="qwen", prompt_template="qwen-instruct",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    good, bad = read_rows(output)
    assert good["generation"].endswith("</tool_response><|im_end|>\n<|im_start|>assistant\nNine.")
    assert (counts(good), counts(bad)) == ((1, 0, 0), (1, 1, 0))


def test_tokens_are_those_of_the_whole_answer(sandbox: RunningSandbox, stub_url: str, tmp_path: Path) -> None:
    source, output = questions(tmp_path / "in.jsonl", "stubborn"), tmp_path / "out.jsonl"
    run_main(
        stub_url, source, output, code_execution=True, sandbox_address=sandbox.client.address,
        inference__tokens_to_generate=5, max_code_executions=100,
    )  # fmt: skip
    [row] = read_rows(output)
    assert row["finish_reason"] == "length"
    assert row["num_generated_tokens"] <= 5
    assert row["num_code_executions"] >= 2


def test_a_sandbox_that_fails_is_no_answer(stub_url: str, tmp_path: Path) -> None:
    source, output = questions(tmp_path / "in.jsonl", "lasting", "plain"), tmp_path / "out.jsonl"
    with running_sandbox("--max_timeout_s", "1") as running:
        address = running.client.address
        settings = {"code_execution": True, "sandbox_address": address, "max_failed_rows": 1}
        done = run_main(stub_url, source, output, **settings)
        assert done.returncode == 0, done.stderr
    assert [row["generation"] for row in read_rows(output)] == ["Nothing to run here."]
    [failed] = read_rows(tmp_path / "out.failed.jsonl")
    assert failed["_reason"] == "sandbox"
    assert "'timeout_s' may be at most 1" in failed["_error"]
    gone = run_main(stub_url, source, tmp_path / "other.jsonl", code_execution=True, sandbox_address=address)
    assert gone.returncode == 2
    assert "gives no answer" in gone.stderr


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"server__server_type": "openai", "server__model": "m"}, "cannot continue a chat message"),
        ({"code_tags": "fence"}, "Did you mean 'fenced'?"),
        ({"inference__n": 2, "inference__temperature": 1}, "code_execution excludes inference.n"),
        ({}, "launch with --with_sandbox"),
    ],
)
def test_what_cannot_work_is_said_at_once(
    settings: dict[str, Any], message: str, stub_url: str, tmp_path: Path
) -> None:
    source = questions(tmp_path / "in.jsonl", "plain")
    done = run_main(stub_url, source, tmp_path / "out.jsonl", code_execution=True, **settings)
    assert done.returncode == 2
    assert message in done.stderr
