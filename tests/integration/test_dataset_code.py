"""Samples of the code benchmarks, graded in the real sandbox."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nemo_skills.evaluation.graders import Grader, get_grader
from tests.conftest import REPO
from tests.integration.sandboxes import running_sandbox

READ_AND_DOUBLE = "print(2 * int(input()))"
TOTAL = "class Solution:\n    def total(self, a: int, b: int) -> int:\n        return a + b"


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with running_sandbox("--port=0") as sandbox:
        yield get_grader("code", {"sandbox_address": sandbox.client.address})


def sample(name: str) -> list[dict[str, Any]]:
    path: Path = REPO / "tests" / "golden" / "benchmarks" / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def verdict(grader: Grader, row: dict[str, Any], code: str) -> str:
    return str(grader.grade({**row, "generation": f"Here it is.\n\n```python\n{code}\n```\n"}).verdict)


@pytest.mark.parametrize("name", ["human-eval", "mbpp"])
def test_functions(name: str, grader: Grader) -> None:
    for row in sample(name):
        assert verdict(grader, row, row["reference_solution"]) == "correct"
        assert verdict(grader, row, f"def {row['entry_point']}(*_):\n    return None") == "incorrect"
        only_base = {**row, "plus_test": row["plus_test"] + "\nassert False\n"}
        grade = grader.grade({**only_base, "generation": f"```python\n{row['reference_solution']}\n```"})
        assert grade.verdict == "incorrect"
        assert grade.details["scores"] == {"passing_base_tests": 1, "passing_plus_tests": 0}


def test_contests(grader: Grader) -> None:
    double, total = sample("livecodebench")
    assert verdict(grader, double, READ_AND_DOUBLE) == "correct"
    # right for the public test alone
    assert verdict(grader, double, "print(3 + int(input()))") == "incorrect"
    assert verdict(grader, total, TOTAL) == "correct"
    assert verdict(grader, total, TOTAL.replace("+ b", "+ 2")) == "incorrect"
