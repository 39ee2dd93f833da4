"""Graded samples by problem, as the metrics need them."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from nemo_skills.evaluation.metrics.estimates import Ratio
from nemo_skills.evaluation.metrics.report import Counts
from nemo_skills.evaluation.verdicts import Verdict


class Sample(NamedTuple):
    """One usable sample: an answer of the model with a verdict about it."""

    run: int
    answer: str | None
    scores: Mapping[str, Ratio]


@dataclass(slots=True)
class Problem:
    """A problem and its usable samples; what infrastructure spoiled is not here."""

    label: str
    samples: list[Sample] = field(default_factory=list)
    tally: Counter[str] = field(default_factory=Counter)
    """How many samples ended how, by the names of `Counts`."""
    groups: tuple[str, ...] = ()
    """Values of the fields by which scores are broken down."""

    def mean(self, measure: str, run: int | None = None) -> Ratio | None:
        """Return the mean of a measure over the samples, or those of one run; None without any."""
        found = [s.scores[measure] for s in self.samples if run in (None, s.run) and measure in s.scores]
        if not found:
            return None
        return Ratio(sum(r.hits for r in found) / len(found), sum(r.of for r in found) / len(found))

    def hits(self, measure: str) -> list[float]:
        """Return the score of every sample."""
        return [s.scores[measure].hits for s in self.samples if measure in s.scores]


def count(problems: Iterable[Problem], runs: int) -> Counts:
    """Return how the samples of problems ended; one that a run has not is lost, and so counts as failed."""
    total: Counter[str] = Counter()
    for problem in problems:
        present = problem.tally.total() - problem.tally["truncated"]
        total.update(problem.tally)
        total["failed"] += max(0, runs - present)
        total["total"] += max(runs, present)
    return Counts(**total)


def scores_of(row: Mapping[str, Any], measure: str) -> dict[str, Ratio] | None:
    """Return the scores of a graded row; None where its verdict says nothing about the answer."""
    verdict = Verdict(row["verdict"])
    if not verdict.counts:
        return None
    scores = {
        measure: Ratio(float(verdict is Verdict.correct)),
        "no_answer": Ratio(float(verdict is Verdict.no_answer)),
    }
    for name, value in ((row.get("grade_details") or {}).get("scores") or {}).items():
        scores[name] = Ratio(*map(float, value)) if isinstance(value, list) else Ratio(float(value))
    return scores


def measures_of(problems: Iterable[Problem]) -> tuple[str, ...]:
    """Return the names of all measures, in the order in which they come up."""
    return tuple(dict.fromkeys(name for p in problems for s in p.samples for name in s.scores))


def is_binary(problems: Sequence[Problem], measure: str) -> bool:
    """Whether a sample is right or wrong as a whole by this measure."""
    return all(
        s.scores[measure].of == 1.0 and s.scores[measure].hits in (0.0, 1.0)
        for p in problems
        for s in p.samples
        if measure in s.scores
    )
