"""What a grader says about an answer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Verdict(StrEnum):
    """The outcome of grading one answer."""

    correct = "correct"
    incorrect = "incorrect"
    no_answer = "no_answer"
    """Nothing that could be graded was found in the generation; counts as not correct."""
    timed_out = "timed_out"
    """Grading this answer took too long; counts as not correct, and is shown apart."""
    grader_error = "grader_error"
    """The grader or what it needs broke down: says nothing about the answer, and counts as neither."""

    @property
    def counts(self) -> bool:
        """Whether the verdict is about the answer, rather than about a breakdown of the grader."""
        return self is not Verdict.grader_error


@dataclass(frozen=True, kw_only=True)
class Grade:
    """A verdict and what it rests on."""

    verdict: Verdict
    predicted_answer: str | None = None
    """The answer found in the generation."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """What the grader has to say besides. Key `scores`: measures of its own, name → number from 0 to 1, or
    name → [hits, of how many]; key `error`: why there is a `grader_error`."""

    def fields(self) -> dict[str, Any]:
        """Return what a graded row gets."""
        return {
            "predicted_answer": self.predicted_answer,
            "verdict": self.verdict.value,
            "grade_details": dict(self.details) or None,
        }
