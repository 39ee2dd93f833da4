"""Paired comparison of two results on the same problems."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean, stdev

from nemo_skills.evaluation.metrics.estimates import sign_test, student_quantile


@dataclass(frozen=True, kw_only=True)
class Change:
    """A problem on which the two differ."""

    problem: str
    first: float
    """Mean score of its samples in the first result, from 0 to 1."""
    second: float

    @property
    def flipped(self) -> bool:
        """Whether it went from mostly right to mostly wrong, or back."""
        return (self.first >= 0.5) != (self.second >= 0.5)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How the second result differs from the first, in percentage points, on the problems that both have."""

    problems: int
    only_first: int
    """Problems with a usable sample in the first result alone."""
    only_second: int
    first: float
    """Score of the first result, in percent."""
    second: float
    difference: float
    """Second minus first."""
    std_error: float | None
    low: float | None
    """95 % interval of the difference: Student's t over the problems' differences. Null for one problem."""
    high: float | None
    p_value: float
    """Two-sided sign test over the problems that changed; for single samples McNemar's exact test."""
    changes: tuple[Change, ...]
    """All problems whose score differs, the largest losses first, then the gains."""

    @property
    def flipped(self) -> tuple[Change, ...]:
        """The changes that are flips."""
        return tuple(change for change in self.changes if change.flipped)


def compare(first: Mapping[str, float], second: Mapping[str, float]) -> Comparison:
    """Compare two results.

    Args:
        first: problem → mean score of its usable samples, from 0 to 1.
        second: the same of the other result.

    Raises:
        ValueError: they have no problem in common.
    """
    common = [problem for problem in first if problem in second]
    if not common:
        raise ValueError("the two results have no problem in common")
    differences = [second[p] - first[p] for p in common]
    mean = fmean(differences)
    error = half = None
    if len(common) > 1:
        error = stdev(differences) / math.sqrt(len(common))
        half = student_quantile(len(common) - 1) * error
    changes = [Change(problem=p, first=first[p], second=second[p]) for p in common if first[p] != second[p]]
    return Comparison(
        problems=len(common),
        only_first=len(first) - len(common),
        only_second=len(second) - len(common),
        first=100 * fmean(first[p] for p in common),
        second=100 * fmean(second[p] for p in common),
        difference=100 * mean,
        std_error=None if error is None else 100 * error,
        low=None if half is None else 100 * max(-1.0, mean - half),
        high=None if half is None else 100 * min(1.0, mean + half),
        p_value=sign_test(sum(d > 0 for d in differences), sum(d < 0 for d in differences)),
        changes=tuple(sorted(changes, key=lambda c: c.second - c.first)),
    )
