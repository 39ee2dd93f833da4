"""Turns graded files into reports."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import orjson

from nemo_skills.core.errors import UserError
from nemo_skills.core.jsonl import disk_errors, write_file
from nemo_skills.evaluation.metrics.modes import all_modes
from nemo_skills.evaluation.metrics.report import BenchmarkReport, Counts, Group, Scores
from nemo_skills.evaluation.metrics.samples import Problem, count
from nemo_skills.evaluation.results import OutputFiles, Results, read_results, split_by_group

METRICS = "metrics.json"


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Up to which share of all samples a score is still believed."""

    infrastructure: float
    truncated: float
    timed_out: float

    def why_invalid(self, counts: Counts) -> str | None:
        """Say what is wrong with a score; None when nothing is."""
        if not counts.total:
            return "there are no rows"
        reasons = []
        for number, most, what in (
            (counts.infrastructure, self.infrastructure, "have no verdict"),
            (counts.truncated, self.truncated, "were cut off at the token limit"),
            (counts.timed_out, self.timed_out, "took too long to grade"),
        ):
            share = number / counts.total
            if share > most:
                reasons.append(
                    f"{number} of {counts.total} answers ({share:.1%}) {what}, more than {most:.1%}"
                )
        return "; ".join(reasons) or None


def score_benchmark(
    folder: Path, thresholds: Thresholds, group_by: Sequence[str] = (), *, runs: int = 0
) -> BenchmarkReport:
    """Score the graded files in a folder; with fewer than `runs` of them the score is not valid.

    Raises:
        UserError: there are none, or they cannot be read.
    """
    files = OutputFiles.find(folder)
    found = files.seeded or ((files.greedy,) if files.greedy else ())
    if not found:
        raise UserError(f"{folder} has no output.jsonl or output-rs0.jsonl.")
    results = read_results(found, group_by)
    counts = results.counts()
    greedy = read_results([files.greedy]) if files.seeded and files.greedy else None
    general = []  # what is wrong with all scores
    if len(found) < runs:
        general.append(f"{len(found)} of {runs} runs are there")
    if len(results.settings | (greedy.settings if greedy else set())) > 1:
        general.append("rows were graded with different settings of the grader: grade all files again")
    why = _joined(*general, thresholds.why_invalid(counts))
    metrics = dict(_modes(results, list(results.problems.values()), greedy))
    if greedy:
        metrics |= all_modes(list(greedy.problems.values()), greedy.measure, 1)
        greedy_why = thresholds.why_invalid(greedy.counts())
        why = why or (f"{greedy.files[0].name}: {greedy_why}" if greedy_why else None)
    groups = [
        replace(group, valid=reason is None, why_invalid=reason)
        for group in _groups(results, group_by, greedy)
        for reason in (_joined(*general, thresholds.why_invalid(group.counts)),)
    ]
    return BenchmarkReport(
        benchmark=folder.name,
        eval_type=results.eval_type,
        measure=results.measure,
        rows=len(results.problems),
        samples=results.runs,
        valid=why is None,
        why_invalid=why,
        counts=counts,
        metrics=metrics,
        avg_tokens=results.tokens / results.with_tokens if results.with_tokens else None,
        generation_seconds=results.seconds,
        groups=tuple(groups),
        files=tuple(path.name for path in results.files),
    )


def write_report(folder: Path, report: BenchmarkReport) -> Path:
    """Write `metrics.json`; it appears complete."""
    path = folder / METRICS
    with disk_errors(path):
        write_file(path, orjson.dumps(report.to_json(), option=orjson.OPT_INDENT_2) + b"\n")
    return path


def _joined(*reasons: str | None) -> str | None:
    return "; ".join(filter(None, reasons)) or None


def _modes(results: Results, problems: Sequence[Problem], greedy: Results | None) -> Scores:
    modes = all_modes(problems, results.measure, results.runs)
    # `pass@1` is that of the greedy run where there is one
    return {"pass@1[avg-of-1]" if greedy and mode == "pass@1" else mode: s for mode, s in modes.items()}


def _groups(results: Results, group_by: Sequence[str], greedy: Results | None) -> list[Group]:
    return [
        Group(
            field=name,
            value=value,
            rows=len(problems),
            counts=count(problems, results.runs),
            metrics=_modes(results, problems, greedy),
        )
        for number, name in enumerate(group_by)
        for value, problems in split_by_group(results, number)
    ]
