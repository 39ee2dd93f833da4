"""The report: a table for the log, and a page with examples and histograms that needs nothing else."""

from collections.abc import Iterator
from html import escape
from pathlib import Path

import orjson

from nemo_skills.core.jsonl import disk_errors, write_file
from nemo_skills.training.data_preparation_utils.engine import Outcome
from nemo_skills.training.data_preparation_utils.stats import Histogram, StepStats

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; color: #222 }
table { border-collapse: collapse }
td, th { padding: .2rem .8rem; text-align: right; border-bottom: 1px solid #ddd }
td:first-child, th:first-child { text-align: left } tr.reason td { color: #777; border: 0 }
pre { white-space: pre-wrap; background: #f6f6f6; padding: .6rem; overflow-wrap: anywhere }
rect { fill: #4a7fb5 } text { font-size: 11px; fill: #555 } summary { cursor: pointer }
"""
_WIDTH, _HEIGHT = 800, 140


def table(steps: list[StepStats]) -> str:
    """Return the rows in and out of every step as text."""
    width = max(len(step.name) for step in steps)
    lines = [f"{'step':{width}} {'in':>12} {'out':>12} {'dropped':>12}"]
    for step in steps:
        reasons = ", ".join(f"{reason} {count}" for reason, count in step.dropped.most_common())
        extra = f"  made {step.created} of {step.merged}" if step.merged else ""
        extra = extra or (f"  {step.created} more" if step.created else "")
        dropped = f"{step.dropped.total():>12}"
        lines.append(
            f"{step.name:{width}} {step.rows_in:>12} {step.rows_out:>12} {dropped}"
            f"{f'  ({reasons})' if reasons else ''}{extra}"
        )
    return "\n".join(lines)


def write_report(path: Path, title: str, outcome: Outcome) -> None:
    """Write the page."""
    page = "".join(_page(title, outcome)).encode("utf-8", "replace")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, page)


def _page(title: str, outcome: Outcome) -> Iterator[str]:
    yield f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
    yield f"<style>{_STYLE}</style><h1>{escape(title)}</h1>"
    for file in outcome.files:
        yield f"<p>{escape(str(file.path))}: {file.rows:,} rows, {file.size:,} bytes</p>"
    if not outcome.files:
        yield "<p><b>No row is left.</b></p>"
    yield "<h2>Rows</h2><table><tr><th>step<th>in<th>out<th>dropped<th>created<th>merged"
    for step in outcome.tally.steps:
        cells = (step.rows_in, step.rows_out, step.dropped.total(), step.created, step.merged)
        yield f"<tr><td>{escape(step.name)}" + "".join(f"<td>{cell:,}" for cell in cells)
        for reason, count in step.dropped.most_common():
            yield f'<tr class="reason"><td>— {escape(reason)}<td><td><td>{count:,}<td><td>'
    yield "</table><h2>Lengths</h2>"
    for what, lengths in sorted(outcome.tally.lengths.items()):
        yield f"<h3>{escape(what)}</h3>"
        yield f"<p>mean {lengths.total / lengths.count:,.1f}, longest {lengths.longest:,}</p>"
        yield _bars(lengths)
    yield "<h2>Examples of dropped rows</h2>"
    for step in outcome.tally.steps:
        for reason, examples in step.examples.items():
            yield f"<details><summary>{escape(step.name)}: {escape(reason)}</summary>"
            for example in examples:
                text = orjson.dumps(example.row, option=orjson.OPT_INDENT_2).decode()
                yield f"<pre>{escape(text)}</pre>"
            yield "</details>"
    yield "</html>\n"


def _bars(lengths: Histogram) -> str:
    """Return a histogram as a drawing."""
    bins = lengths.as_json()["bins"]
    first = next(i for i, (_, count) in enumerate(bins) if count)
    bins = bins[first:]
    top = max(count for _, count in bins)
    step = _WIDTH / len(bins)
    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT + 20}" width="100%" role="img">']
    for index, (start, count) in enumerate(bins):
        height = _HEIGHT * count / top
        parts.append(
            f'<rect x="{index * step:.1f}" y="{_HEIGHT - height:.1f}" width="{max(step - 1, 1):.1f}"'
            f' height="{height:.1f}"><title>from {start:,}: {count:,} rows</title></rect>'
        )
        if index % max(1, len(bins) // 10) == 0:
            parts.append(f'<text x="{index * step:.1f}" y="{_HEIGHT + 14}">{start:,}</text>')
    return "".join([*parts, "</svg>"])
