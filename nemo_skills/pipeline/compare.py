"""`ns compare`: how the scores of two models differ, problem by problem."""

import importlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nemo_skills.core.errors import UserError
from nemo_skills.pipeline.cluster.tunnel import LocalTunnel, ShellTunnel
from nemo_skills.pipeline.options import CompareOptions, WhereOptions
from nemo_skills.pipeline.result_files import Result, choose, folders_of, read_results, short_names
from nemo_skills.pipeline.result_table import INVALID, fit_to_reader
from nemo_skills.pipeline.summarize_results import open_place
from nemo_skills.pipeline.wrapper import wrapper

if TYPE_CHECKING:
    from nemo_skills.evaluation.metrics.compare import Change, Comparison
    from nemo_skills.evaluation.metrics.report import Counts

_SPOILED = ("timed out", "truncated", "failed")
"""What stands beside a score."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One benchmark of two models, compared."""

    benchmark: str
    measure: str
    valid: bool
    """Whether both scores are."""
    counts: "tuple[Counts, Counts]"
    """How the samples of each ended."""
    comparison: "Comparison"

    @property
    def gained(self) -> "list[Change]":
        """Problems that mostly came out right only the second time."""
        return [change for change in self.comparison.flipped if change.second > change.first]

    @property
    def lost(self) -> "list[Change]":
        """Problems that mostly came out right only the first time."""
        return [change for change in self.comparison.flipped if change.second < change.first]


@wrapper()
def compare(own: CompareOptions, where: WhereOptions) -> list[Pair]:
    """Compare the scores in two folders on the problems that both have: the second less the first.

    A paired comparison tells far smaller differences from chance than two scores with their own intervals
    do. Shown are the difference in percentage points with its 95 % interval, the p-value of a sign test, and
    how many problems flipped: mostly right in one of them, mostly wrong in the other.
    """
    if len(own.folders) != 2:
        raise UserError("give two folders, the model to compare with first")
    found, tunnel = _find(own, where)
    names = short_names(list(folders_of(found)))
    first, second = ({one.report.benchmark: one for one in found if one.folder == f} for f in names)
    common = [name for name in first if name in second]
    if not common:
        raise UserError(f"{' and '.join(own.folders)} have no benchmark in common")
    pairs = [_compare(first[name], second[name], tunnel) for name in common]
    if own.format == "json":
        print(json.dumps([_as_dict(pair) for pair in pairs], indent=1))
    else:
        _show(pairs, list(names.values()))
        for pair in pairs if own.show else ():
            _show_flips(pair, own.show)
    return pairs


def _find(own: CompareOptions, where: WhereOptions) -> tuple[list[Result], ShellTunnel]:
    locate, tunnel = open_place(where)
    found: list[Result] = []
    models: list[str] = []
    for folder in own.folders:
        results = read_results([locate(folder)], tunnel)
        if len(folders := list(folders_of(results))) != 1:
            what = f"several: {', '.join(folders)}" if folders else "none"
            raise UserError(f"{folder} must hold the results of one model, but there are {what}")
        models += folders
        found += choose(results, own.benchmarks)
    if models[0] == models[1]:
        raise UserError(f"{' and '.join(own.folders)} are the same results, those in {models[0]}")
    if len(set(folders_of(found))) < 2:
        raise UserError(f"{' and '.join(own.folders)} have no benchmark in common")
    return found, tunnel


def _compare(first: Result, second: Result, tunnel: ShellTunnel) -> Pair:
    measure = first.report.measure
    if second.report.measure != measure:
        raise UserError(
            f"{first.report.benchmark} was graded differently: {measure} and {second.report.measure}"
        )
    compare_scores = importlib.import_module("nemo_skills.evaluation.metrics.compare").compare
    try:
        comparison = compare_scores(_scores(first, tunnel), _scores(second, tunnel))
    except ValueError as error:
        raise UserError(f"{first.report.benchmark}: {error}") from None
    return Pair(
        benchmark=first.report.benchmark,
        measure=measure,
        valid=first.report.valid and second.report.valid,
        counts=(first.report.counts, second.report.counts),
        comparison=cast("Comparison", comparison),
    )


def _scores(one: Result, tunnel: ShellTunnel) -> Mapping[str, float]:
    """Return the mean score of every problem."""
    results = importlib.import_module("nemo_skills.evaluation.results")
    with _here(one, tunnel) as files:
        return cast("Mapping[str, float]", results.problem_scores(results.read_results(files)))


@contextmanager
def _here(one: Result, tunnel: ShellTunnel) -> Iterator[Sequence[Path]]:
    """Give the graded files of a benchmark, copies of them where they are on a cluster."""
    folder = Path(one.folder) / "eval-results" / one.report.benchmark
    if isinstance(tunnel, LocalTunnel):
        yield [folder / name for name in one.report.files]
        return
    with tempfile.TemporaryDirectory(prefix="ns-compare-") as copies:
        paths = [Path(copies) / name for name in one.report.files]
        for path in paths:
            tunnel.get(str(folder / path.name), path)
        yield paths


def _as_dict(pair: Pair) -> dict[str, object]:
    values = asdict(pair.comparison)
    values["changes"] = [asdict(change) | {"flipped": change.flipped} for change in pair.comparison.changes]
    counts = {"gained": len(pair.gained), "lost": len(pair.lost)}
    counts |= {
        f"{name}_{which}".replace(" ", "_"): number
        for which, one in zip(("first", "second"), pair.counts, strict=True)
        for name, number in {"total": one.total, **_spoiled(one)}.items()
    }
    return {"benchmark": pair.benchmark, "measure": pair.measure, "valid": pair.valid, **counts, **values}


def _spoiled(counts: "Counts") -> dict[str, int]:
    """Return how many samples were spoiled, and by what."""
    return dict(zip(_SPOILED, (counts.timed_out, counts.truncated, counts.infrastructure), strict=True))


def _show(pairs: Sequence[Pair], names: Sequence[str]) -> None:
    console = fit_to_reader(Console(highlight=False))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in ("benchmark", "score"):
        table.add_column(name, overflow="fold")
    for name in (*names, "difference", "95 % interval", "p", "gained", "lost", "problems", *_SPOILED):
        table.add_column(name, overflow="fold", justify="right")
    for pair in pairs:
        result = pair.comparison
        sure = result.low is not None and result.high is not None and (result.low > 0 or result.high < 0)
        colour = ("green" if result.difference > 0 else "red") if sure and pair.valid else ""
        interval = "" if result.low is None else f"{result.low:+.2f} to {result.high:+.2f}"
        table.add_row(
            Text(pair.benchmark),
            Text(pair.measure),
            *(f"{value:.2f}" for value in (result.first, result.second)),
            Text(f"{result.difference:+.2f}{'' if pair.valid else f' {INVALID}'}", style=colour),
            *(interval, f"{result.p_value:.2g}", f"{len(pair.gained)}", f"{len(pair.lost)}"),
            f"{result.problems}",
            *(" → ".join(f"{_spoiled(one)[name]}/{one.total}" for one in pair.counts) for name in _SPOILED),
        )
    console.print(table)
    for pair in pairs:
        alone = pair.comparison.only_first, pair.comparison.only_second
        if any(alone):
            console.print(
                f"{pair.benchmark}: {alone[0]} and {alone[1]} problems are in one of them only",
                style="yellow",
            )
        if not pair.valid:
            console.print(
                f"{INVALID} {pair.benchmark}: a score is not valid, see ns summarize_results", style="yellow"
            )


def _show_flips(pair: Pair, most: int) -> None:
    console = Console(highlight=False, soft_wrap=True)
    for title, changes in (("gained", pair.gained[::-1]), ("lost", pair.lost)):
        console.print(f"\n{pair.benchmark}, {title}:")
        for change in changes[:most]:
            console.print(Text(f"  {change.first:.2f} → {change.second:.2f}  {change.problem}"))
        if len(changes) > most:
            console.print(f"  and {len(changes) - most} more")
