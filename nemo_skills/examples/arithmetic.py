"""Word problems that add two numbers, with worked solutions: small enough to be learned on a laptop.

A model of half a million weights learns them within minutes, but only by way of the intermediate steps: asked
for the bare sum it fails. No pair of numbers is in both splits.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

HELD_OUT = 500
"""Pairs of numbers that only the test split has."""
_TRAINED_TIMES = 3
_NUMBERS = range(10, 100)
_NAMES = ("Ana", "Ben", "Chloe", "Dmitri", "Emeka", "Fatima", "Goran", "Hana")
_THINGS = ("marbles", "stamps", "shells", "cards", "pencils", "apples")
_TEMPLATES = (
    "{name} has {a} {things} and gets {b} more. How many {things} does {name} have now?",
    "There are {a} {things} in one box and {b} in another. How many {things} are there in all?",
    "{name} finds {a} {things} in the morning and {b} in the evening. How many is that together?",
    "A shop sells {a} {things} on Monday and {b} on Tuesday. How many {things} does it sell on both days?",
)

Split = Literal["train", "test"]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One word problem."""

    problem: str
    expected_answer: str
    solution: str


def problems(split: Split, seed: int = 0) -> Iterator[Problem]:
    """Yield the problems of a split in an order that the seed decides.

    To train on there are several problems with each pair of numbers; in the test split, whose pairs are the
    same for every seed, there is one.
    """
    pairs = [(a, b) for a in _NUMBERS for b in _NUMBERS]
    random.Random(0).shuffle(pairs)
    chosen = pairs[:HELD_OUT] if split == "test" else pairs[HELD_OUT:]
    dice = random.Random(seed)
    for _ in range(1 if split == "test" else _TRAINED_TIMES):
        dice.shuffle(chosen)
        for a, b in chosen:
            yield _problem(a, b, dice)


def solution(a: int, b: int) -> str:
    """Return the sum of two numbers with two digits each, worked out as on paper."""
    ones = a % 10 + b % 10
    tens = a // 10 + b // 10 + ones // 10
    steps = f"{a % 10}+{b % 10}={ones}, {a // 10}+{b // 10}+{ones // 10}={tens}"
    return f"{a}+{b}: {steps}. The answer is \\boxed{{{a + b}}}."


def _problem(a: int, b: int, dice: random.Random) -> Problem:
    text = dice.choice(_TEMPLATES).format(name=dice.choice(_NAMES), things=dice.choice(_THINGS), a=a, b=b)
    return Problem(problem=text, expected_answer=str(a + b), solution=solution(a, b))
