"""Reads the graded files of a benchmark."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import orjson

from nemo_skills.core.errors import UserError
from nemo_skills.core.jsonl import iter_lines, parse_row
from nemo_skills.evaluation.graders import grader_class
from nemo_skills.evaluation.metrics.report import Counts
from nemo_skills.evaluation.metrics.samples import Problem, Sample, count, scores_of
from nemo_skills.evaluation.verdicts import Verdict
from nemo_skills.inference.outputs import OutputPaths

UNJUDGED = "unjudged"
"""Folder of answers that a judge has gone on from, beside the files that it made of them."""
_SEEDED = re.compile(r"output-rs(\d+)\.jsonl")
_GREEDY = "output.jsonl"
_IDS = ("id", "problem_id", "task_id", "question_id", "unique_id", "key")
_TEXTS = ("problem", "question", "prompt", "instruction", "input", "messages", "expected_answer")
_LABEL = 100


@dataclass(frozen=True, kw_only=True)
class OutputFiles:
    """The output files of a benchmark."""

    greedy: Path | None
    seeded: tuple[Path, ...]

    @classmethod
    def find(cls, folder: Path) -> "OutputFiles":
        """Find them: `output.jsonl`, and `output-rs0.jsonl` and so on in the order of their numbers."""
        seeded = [
            (int(match[1]), path) for path in folder.iterdir() if (match := _SEEDED.fullmatch(path.name))
        ]
        greedy = folder / _GREEDY
        return cls(
            greedy=greedy if greedy.is_file() else None, seeded=tuple(path for _, path in sorted(seeded))
        )


@dataclass(kw_only=True)
class Results:
    """What is known about the runs of a benchmark."""

    files: tuple[Path, ...]
    eval_type: str = ""
    measure: str = ""
    problems: dict[str, Problem] = field(default_factory=dict)
    tokens: int = 0
    with_tokens: int = 0
    settings: set[str] = field(default_factory=set)
    """Graders that rows were graded with, with their settings."""
    spans: dict[int, tuple[float, float]] = field(default_factory=dict)
    """Run → times of its first request and its last answer."""

    @property
    def runs(self) -> int:
        """How many files there are."""
        return len(self.files)

    @property
    def seconds(self) -> float | None:
        """How long the runs took, added up: days may lie between them."""
        return sum(end - start for start, end in self.spans.values()) if self.spans else None

    def counts(self) -> Counts:
        """Return how many samples ended how."""
        return count(self.problems.values(), self.runs)


def read_results(files: Sequence[Path], group_by: Sequence[str] = ()) -> Results:
    """Read graded rows; files are runs over the same problems.

    Raises:
        UserError: a file cannot be read, or was graded by several graders.
    """
    results = Results(files=tuple(files))
    for run, path in enumerate(files):
        seen: Counter[str] = Counter()
        for row in _rows(path):
            problem = _problem(results, row, seen, group_by)
            _add(results, problem, row, run)
        # where a judge made the file of answers, some may have failed before it came to them
        for output in (path, path.parent / UNJUDGED / path.name):
            failed = OutputPaths.of(output).failed
            for row in _rows(failed) if failed.exists() else ():
                _problem(results, row, seen, group_by).tally["failed"] += 1
    return results


def split_by_group(results: Results, number: int) -> Iterator[tuple[str, list[Problem]]]:
    """Yield the problems that have the same value in one of the fields by which scores are broken down."""
    groups: dict[str, list[Problem]] = {}
    for problem in results.problems.values():
        groups.setdefault(problem.groups[number], []).append(problem)
    yield from sorted(groups.items())


def problem_scores(results: Results, measure: str | None = None) -> dict[str, float]:
    """Return the mean score of each problem with a usable sample, by a label that is the same in all results.

    Raises:
        UserError: there is no such measure.
    """
    name = measure or results.measure
    means = {f"{p.label} [{key}]": p.mean(name) for key, p in results.problems.items()}
    found = {label: mean.hits / mean.of for label, mean in means.items() if mean is not None and mean.of}
    if not found:
        raise UserError(f"{results.files[0].parent}: no row has a score called '{name}'.")
    return found


def _rows(path: Path) -> Iterable[dict[str, Any]]:
    return (parse_row(path, line) for line in iter_lines(path))


def _problem(
    results: Results, row: Mapping[str, Any], seen: Counter[str], group_by: Sequence[str]
) -> Problem:
    """Return the problem of a row; the same text a second time in a file is another problem."""
    identity = [row[name] for name in (*_IDS, *_TEXTS) if row.get(name) is not None]
    key = blake2b(orjson.dumps(identity), digest_size=6).hexdigest()
    seen[key] += 1
    if seen[key] > 1:
        key = f"{key}-{seen[key]}"
    problem = results.problems.get(key)
    if problem is None:
        label = next((str(row[name]) for name in (*_IDS, *_TEXTS) if row.get(name) is not None), "?")
        groups = tuple(str(row.get(name)) for name in group_by)
        problem = results.problems[key] = Problem(" ".join(label.split())[:_LABEL], groups=groups)
    return problem


def _add(results: Results, problem: Problem, row: Mapping[str, Any], run: int) -> None:
    problem.tally["truncated"] += row.get("finish_reason") == "length"
    if (tokens := row.get("num_generated_tokens")) is not None:
        results.tokens += tokens
        results.with_tokens += 1
    _note_times(results, row, run)
    if row.get("verdict") is None:
        problem.tally["ungraded"] += 1
        return
    graded_by = str(row.get("graded_by", ""))
    results.settings.add(graded_by.rpartition("-")[0] or graded_by)  # less the checksum of the row
    eval_type = graded_by.rpartition(":")[0]
    if not results.measure:
        results.eval_type = eval_type
        results.measure = _measure(results.eval_type)
    elif results.eval_type != eval_type:
        raise UserError(
            f"{results.files[run]}: rows graded by {graded_by} and by {results.eval_type}:"
            " grade all files with one grader."
        )
    problem.tally[Verdict(row["verdict"])] += 1
    scores = scores_of(row, results.measure)
    if scores is not None:
        problem.samples.append(Sample(run, row.get("predicted_answer"), scores))


def _note_times(results: Results, row: Mapping[str, Any], run: int) -> None:
    start, end = row.get("generation_start_time"), row.get("generation_end_time")
    if isinstance(start, (int, float)) and isinstance(end, (int, float)):
        first, last = results.spans.get(run, (start, end))
        results.spans[run] = min(first, start), max(last, end)


def _measure(eval_type: str) -> str:
    try:
        return grader_class(eval_type).measure
    except UserError:  # a grader of the user's that is not here
        return "correct"
