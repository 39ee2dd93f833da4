"""Scores as lines of plain values, which every output format is made of."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nemo_skills.pipeline.result_files import Result, folders_of, short_names

if TYPE_CHECKING:
    from nemo_skills.evaluation.metrics.report import BenchmarkReport, Group, Scores


@dataclass(frozen=True, kw_only=True)
class Line:
    """One score, with what stands beside it."""

    benchmark: str
    group: str
    """`field=value` where it is the score of some rows only; empty for all."""
    mode: str
    """Such as `pass@1[avg-of-4]`."""
    measure: str
    model: str
    """Short name of the folder."""
    folder: str
    score: float
    std_error: float | None
    low: float | None
    high: float | None
    runs_std_dev: float | None
    problems: int
    valid: bool
    why_invalid: str | None
    total: int
    """Number of samples, as the next ones."""
    no_answer: int
    truncated: int
    failed: int
    """Without an answer or a verdict, because something broke down: they count for nothing."""
    timed_out: int
    avg_tokens: float | None = None
    generation_seconds: float | None = None


def lines(results: Sequence[Result], *, groups: bool = False) -> list[Line]:
    """Return one line for each score."""
    names = short_names(list(folders_of(results)))
    return [line for one in results for line in _of(one, names[one.folder], groups=groups)]


def _of(one: Result, model: str, *, groups: bool) -> Iterator[Line]:
    report = one.report
    common = {"benchmark": report.benchmark, "model": model, "folder": one.folder}
    totals = {"avg_tokens": report.avg_tokens, "generation_seconds": report.generation_seconds}
    yield from _scores(common | totals | {"group": ""} | _about(report), report.metrics)
    for group in report.groups if groups else ():
        named = {"group": f"{group.field}={group.value}", **_about(group)}
        yield from _scores(common | named, group.metrics)


def _about(scored: "BenchmarkReport | Group") -> dict[str, Any]:
    counts = scored.counts
    return {
        "valid": scored.valid,
        "why_invalid": scored.why_invalid,
        "total": counts.total,
        "no_answer": counts.no_answer,
        "truncated": counts.truncated,
        "failed": counts.infrastructure,
        "timed_out": counts.timed_out,
    }


def _scores(values: Mapping[str, Any], scores: "Scores") -> Iterator[Line]:
    for mode, measures in scores.items():
        for measure, score in measures.items():
            yield Line(
                mode=mode,
                measure=measure,
                score=score.value,
                std_error=score.std_error,
                low=score.low,
                high=score.high,
                runs_std_dev=score.runs_std_dev,
                problems=score.problems,
                **values,
            )


@dataclass(frozen=True, kw_only=True)
class Pivot:
    """Scores side by side: a row for each kind of score, a cell for each model."""

    models: tuple[str, ...]
    rows: Mapping[tuple[str, str, str, str], Mapping[str, Line]]
    """Benchmark, group, mode and measure → model → score."""

    @classmethod
    def of(cls, all_lines: Iterable[Line]) -> "Pivot":
        """Put the scores of the same kind into one row."""
        rows: dict[tuple[str, str, str, str], dict[str, Line]] = {}
        models: dict[str, None] = {}
        for line in all_lines:
            models[line.model] = None
            rows.setdefault((line.benchmark, line.group, line.mode, line.measure), {})[line.model] = line
        names = list(dict.fromkeys(key[0] for key in rows))
        ordered = sorted(rows.items(), key=lambda item: names.index(item[0][0]))
        return cls(models=tuple(models), rows=dict(ordered))
