"""The synthetic word problems of the quickstart."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_skills.examples.arithmetic import HELD_OUT, Problem, problems, solution

NUMBERS = st.integers(min_value=10, max_value=99)


def pair(problem: Problem) -> tuple[str, ...]:
    return tuple(re.findall(r"\d+", problem.problem))


@given(NUMBERS, NUMBERS)
def test_every_step_of_a_solution_is_right(a: int, b: int) -> None:
    text = solution(a, b)
    assert text.endswith(f"\\boxed{{{a + b}}}.")
    steps = re.findall(r"([\d+]+)=(\d+)", text)
    assert len(steps) == 2
    for terms, total in steps:
        assert sum(map(int, terms.split("+"))) == int(total)


@pytest.mark.parametrize("seed", [0, 7])
def test_no_pair_is_in_both_splits(seed: int) -> None:
    train, test = list(problems("train", seed)), list(problems("test", seed))
    assert len(test) == HELD_OUT
    seen = {pair(one) for one in train}
    assert not seen & {pair(one) for one in test}
    assert len(seen) + len(test) == 90 * 90
    assert {pair(one) for one in test} == {pair(one) for one in problems("test", 1)}
    assert all(sum(map(int, pair(one))) == int(one.expected_answer) for one in train + test)


def test_a_seed_decides_everything() -> None:
    assert list(problems("train", 3)) == list(problems("train", 3)) != list(problems("train", 4))
