"""Finds the folders to score, and what their benchmarks say about it."""

from collections.abc import Sequence
from pathlib import Path

from nemo_skills.core.errors import UserError, did_you_mean
from nemo_skills.dataset.lookup import get_benchmark
from nemo_skills.evaluation.results import OutputFiles


def benchmark_folders(results: Path, wanted: Sequence[str], problems: list[str]) -> list[Path]:
    """Return the folders with output files; what is wanted and not there goes to `problems`.

    Raises:
        UserError: there are none.
    """
    if not results.is_dir():
        raise UserError(f"{results} is not a folder.")
    if _has_outputs(results):
        return [results]
    found = {path.name: path for path in sorted(results.iterdir()) if path.is_dir() and _has_outputs(path)}
    if not found:
        raise UserError(f"{results} has no folder with an output.jsonl or output-rs0.jsonl.")
    problems += (
        f"{results} has no results of '{name}'.{did_you_mean(name, found)}"
        for name in wanted
        if name not in found
    )
    return [found[name] for name in wanted if name in found] if wanted else list(found.values())


def group_fields(benchmark: str, extra_datasets: str | None) -> tuple[str, ...]:
    """Return the fields by which a benchmark wants its scores broken down."""
    try:
        return get_benchmark(benchmark, extra_datasets).defaults.group_by
    except UserError:  # results may be of anything
        return ()


def _has_outputs(folder: Path) -> bool:
    files = OutputFiles.find(folder)
    return bool(files.greedy or files.seeded)
