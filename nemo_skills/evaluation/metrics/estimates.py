"""Formulas: pure functions of numbers."""

import math
from collections import defaultdict
from collections.abc import Sequence
from statistics import NormalDist, fmean, stdev
from typing import NamedTuple

_LEVEL = 0.95
_Z = NormalDist().inv_cdf(0.5 + _LEVEL / 2)


class Interval(NamedTuple):
    """Both ends of a 95 % confidence interval."""

    low: float
    high: float


class Ratio(NamedTuple):
    """Mean hits of a problem and of how many; `of` is 1 where a sample is right or wrong as a whole."""

    hits: float
    of: float = 1.0


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Return the probability that at least one of `k` samples, drawn without replacement, is correct."""
    if not 0 <= correct <= samples or not 1 <= k <= samples:
        raise ValueError(f"pass@{k} of {correct} correct among {samples}")
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def majority(votes: Sequence[tuple[str | None, float]]) -> float:
    """Return how right the most frequent answer is; where several are most frequent, their average.

    Args:
        votes: answer and score of each sample; samples without an answer do not vote. An answer that was
            scored differently in several samples has its average score.
    """
    scores: dict[str, list[float]] = defaultdict(list)
    for answer, score in votes:
        if answer is not None:
            scores[answer].append(score)
    most = max(map(len, scores.values()), default=0)
    return fmean(fmean(s) for s in scores.values() if len(s) == most) if scores else 0.0


def mean_ratio(problems: Sequence[Ratio]) -> float:
    """Return all hits over all that there was to hit; the plain mean where every `of` is 1."""
    return math.fsum(p.hits for p in problems) / math.fsum(p.of for p in problems)


def clustered_std_error(problems: Sequence[Ratio]) -> float | None:
    """Return the standard error of `mean_ratio`; problems are independent, samples of one problem are not.

    For plain means this is the standard deviation of the problems' means over the root of their number; for
    ratios it is linearised.
    """
    count = len(problems)
    if count < 2:
        return None
    ratio = mean_ratio(problems)
    total = math.fsum(p.of for p in problems)
    squares = math.fsum((p.hits - ratio * p.of) ** 2 for p in problems)
    return math.sqrt(squares * count / (count - 1)) / total


def wilson(share: float, std_error: float | None, samples: int) -> Interval:
    """Return Wilson's score interval of a share.

    Args:
        share: between 0 and 1.
        std_error: of the share; it decides how many independent samples the ones at hand are worth. Without
            it, or where it is 0 as all problems came out alike, `samples` counts.
        samples: how many there are; never more count.
    """
    spread = share * (1.0 - share)
    effective = float(samples)
    if std_error and spread > 0:
        effective = min(effective, spread / std_error**2)
    shrink = _Z**2 / effective
    centre = (share + shrink / 2) / (1 + shrink)
    half = _Z / (1 + shrink) * math.sqrt(spread / effective + shrink / (4 * effective))
    return Interval(max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share)))


def runs_std_dev(values: Sequence[float]) -> float | None:
    """Return the standard deviation across runs."""
    return stdev(values) if len(values) > 1 else None


def student_quantile(degrees: int) -> float:
    """Return the 97.5 % quantile of Student's t distribution (an expansion; exact for 1 and 2)."""
    if degrees < 1:
        raise ValueError("a t distribution needs a degree of freedom")
    if degrees == 1:
        return math.tan(math.pi * _LEVEL / 2)
    if degrees == 2:
        return _LEVEL * math.sqrt(2 / (1 - _LEVEL**2))
    z, n = _Z, float(degrees)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    fourth = (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160
    return z + first / n + second / n**2 + third / n**3 + fourth / n**4


def sign_test(better: int, worse: int) -> float:
    """Return the two-sided p-value of so many changes for better and worse (McNemar's exact test)."""
    changed = better + worse
    if not changed:
        return 1.0
    tail = sum(math.comb(changed, i) for i in range(min(better, worse) + 1))
    return min(1.0, 2 * tail / (1 << changed))
