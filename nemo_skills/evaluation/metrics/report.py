"""The contents of `metrics.json`: what is known about one benchmark's results.

This module needs the standard library only, so that programs which show results can load it at no cost.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

FORMAT = 1
"""Version of the file format; a reader refuses newer ones."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """One figure of a benchmark, in percent, with its uncertainty."""

    value: float
    problems: int
    """How many problems it rests on: those without any usable sample are left out."""
    std_error: float | None = None
    """Standard error of the value, with problems as clusters of samples; null for fewer than two problems."""
    low: float | None = None
    """Lower end of the 95 % confidence interval (Wilson's, with the effective number of samples)."""
    high: float | None = None
    """Upper end of that interval."""
    runs_std_dev: float | None = None
    """Standard deviation of this figure across runs (seeds); null where there is only one."""
    runs_std_error: float | None = None
    """Standard error of the mean over the runs that comes from it."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How many samples ended how; they add up to `total`, except `truncated`, which overlaps."""

    total: int
    correct: int = 0
    incorrect: int = 0
    no_answer: int = 0
    timed_out: int = 0
    """Grading took too long; counted as not correct."""
    grader_error: int = 0
    """Infrastructure, as `failed` and `ungraded`: left out of every score."""
    failed: int = 0
    """Rows that generation could not answer."""
    ungraded: int = 0
    truncated: int = 0
    """Answers that ended at the token limit, whatever their verdict."""

    @property
    def infrastructure(self) -> int:
        """Samples that say nothing about the model."""
        return self.failed + self.grader_error + self.ungraded


Scores = Mapping[str, Mapping[str, Score]]
"""Mode (`pass@1[avg-of-4]`, `pass@4`, `majority@4`; `pass@1` for one run) → measure (`symbolic_correct`)."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """The scores of those rows that have one value in one field."""

    field: str
    value: str
    rows: int
    """Number of its problems."""
    valid: bool = True
    """Whether the benchmark has all its runs, and of this group few enough samples failed."""
    why_invalid: str | None = None
    counts: Counts
    metrics: Scores


@dataclass(frozen=True, kw_only=True)
class BenchmarkReport:
    """Everything in `<benchmark>/metrics.json`."""

    benchmark: str
    eval_type: str
    """Name of the grader."""
    measure: str
    """The measure that counts most, a key of each mode in `metrics`."""
    rows: int
    """Number of different problems."""
    samples: int
    """Number of runs (seeds), each with one answer to each problem."""
    valid: bool
    why_invalid: str | None = None
    counts: Counts
    metrics: Scores
    avg_tokens: float | None = None
    """Mean number of generated tokens."""
    generation_seconds: float | None = None
    """Wall-clock time from the first request to the last answer of a run, added up over the runs."""
    groups: tuple[Group, ...] = ()
    files: tuple[str, ...] = field(default=())
    """Names of the graded files, in the folder of `metrics.json`."""

    @property
    def score(self) -> Score | None:
        """The most important figure: the main measure in the first mode; None if nothing could be scored."""
        return next(
            (scores[self.measure] for scores in self.metrics.values() if self.measure in scores), None
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain dictionaries, lists and numbers."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_json` made.

        Raises:
            ValueError: the data is of another format.
        """
        if data.get("format") != FORMAT:
            raise ValueError(f"metrics of format {data.get('format')}, expected {FORMAT}")
        try:
            known = {name: data[name] for name in cls.__dataclass_fields__ if name in data}
            known |= {
                "counts": Counts(**data["counts"]),
                "metrics": _scores(data["metrics"]),
                "groups": tuple(_group(group) for group in data.get("groups", ())),
                "files": tuple(data.get("files", ())),
            }
            return cls(**known)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not the metrics of a benchmark: {error}") from None


def _scores(data: Mapping[str, Any]) -> Scores:
    return {
        mode: {name: Score(**score) for name, score in measures.items()} for mode, measures in data.items()
    }


def _group(data: Mapping[str, Any]) -> Group:
    return Group(**{**data, "counts": Counts(**data["counts"]), "metrics": _scores(data["metrics"])})
