"""Rows of multiple-choice questions."""

import hashlib
import random
import string
from collections.abc import Sequence

from nemo_skills.dataset.rows import PreparedRow, SourceRow

LETTERS = string.ascii_uppercase


def choice_row(row: SourceRow, problem: str, options: Sequence[str], correct: int) -> PreparedRow:
    """Return the fields of a question.

    Args:
        row: where it comes from, for messages.
        problem: the question.
        options: what can be chosen.
        correct: which of them is right; the first is 0.

    Raises:
        UserError: there are fewer than two, or more than there are letters, or none at that place.
    """
    if not 2 <= len(options) <= len(LETTERS):
        raise row.error(f"a question needs 2 to {len(LETTERS)} options, not {len(options)}")
    if not 0 <= correct < len(options):
        raise row.error(f"there is no option number {correct + 1} of {len(options)}")
    lines = [f"{letter}) {option}" for letter, option in zip(LETTERS, options, strict=False)]
    return {
        "problem": problem,
        "options": list(options),
        "choices": "\n".join(lines),
        "expected_answer": LETTERS[correct],
    }


def letter_index(row: SourceRow, letter: str) -> int:
    """Return the place of the option that a letter names."""
    if len(letter) != 1 or letter not in LETTERS:
        raise row.error(f"the answer should be a letter, not '{letter}'")
    return LETTERS.index(letter)


def shuffled(problem: str, correct: str, wrong: Sequence[str]) -> tuple[list[str], int]:
    """Return options in an order that only depends on the question, and where the correct one is."""
    options = [correct, *wrong]
    seed = hashlib.sha256("\x1f".join([problem, *options]).encode()).digest()
    order = list(range(len(options)))
    random.Random(seed).shuffle(order)
    return [options[index] for index in order], order.index(0)
