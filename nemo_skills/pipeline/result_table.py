"""Prints scores: as a table for people, or as JSON, CSV, Markdown or LaTeX."""

import csv
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nemo_skills.pipeline.result_files import Result
from nemo_skills.pipeline.result_lines import Line, Pivot, lines

_WIDE = 100_000
INVALID = "!"
"""Stands behind a score that must not be relied on."""
_KINDS = ("benchmark", "score")
_CELLS = ("%", "95 %", "no answer", "timed out", "truncated", "failed", "tokens", "seconds")
_NO_ANSWER = "no_answer"
_LATEX = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"} | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"\\": r"\textbackslash{}", "–": "--"}
)  # fmt: skip


def show_table(results: Sequence[Result], *, groups: bool = False) -> None:
    """Print scores for people, models side by side."""
    pivot = _pivot(results, groups=groups)
    console = fit_to_reader(Console(highlight=False))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in _header(pivot):
        table.add_column(name, justify="left" if name in _KINDS else "right", overflow="fold")
    for words, row in _body(pivot):
        invalid = any(not line.valid for line in row.values())
        table.add_row(*(Text(word, style="yellow" if invalid and INVALID in word else "") for word in words))
    console.print(table)
    for note in _notes(pivot):
        console.print(Text(note, style="yellow"))


def fit_to_reader(console: Console) -> Console:
    """Let lines be as long as they are unless they go to a terminal: programs want whole ones."""
    if not console.is_terminal:
        console.width = _WIDE
    return console


def print_json(results: Sequence[Result], *, groups: bool = False) -> None:
    """Print a list of objects, one for each score."""
    print(json.dumps([asdict(line) for line in lines(results, groups=groups)], indent=1))


def print_csv(results: Sequence[Result], *, groups: bool = False) -> None:
    """Print a line for each score."""
    writer = csv.DictWriter(sys.stdout, [f.name for f in fields(Line)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(line) for line in lines(results, groups=groups))


def print_markdown(results: Sequence[Result], *, groups: bool = False) -> None:
    """Print a table for a document in Markdown."""
    pivot = _pivot(results, groups=groups)
    header = _header(pivot)

    def row(words: Sequence[str]) -> str:
        return "| " + " | ".join(word.replace("|", "\\|") for word in words) + " |"

    print(row([name.replace("\n", " ") for name in header]))
    print("|" + "|".join("---" if name in _KINDS else "---:" for name in header) + "|")
    for words, _ in _body(pivot):
        print(row(words))
    for note in _notes(pivot):
        print(f"\n{note}")


def print_latex(results: Sequence[Result], *, groups: bool = False) -> None:
    """Print a table for LaTeX, which needs the package booktabs."""
    pivot = _pivot(results, groups=groups)
    header = _header(pivot)

    def row(words: Sequence[str]) -> str:
        return " & ".join(word.replace("\n", " ").translate(_LATEX) for word in words) + r" \\"

    print(rf"\begin{{tabular}}{{{''.join('l' if name in _KINDS else 'r' for name in header)}}}")
    print("\n".join([r"\toprule", row(header), r"\midrule", *(row(words) for words, _ in _body(pivot))]))
    print("\n".join([r"\bottomrule", r"\end{tabular}", *(f"% {note}" for note in _notes(pivot))]))


FORMATS: Mapping[str, Callable[..., None]] = {
    "table": show_table,
    "json": print_json,
    "csv": print_csv,
    "markdown": print_markdown,
    "latex": print_latex,
}


def _pivot(results: Sequence[Result], *, groups: bool) -> Pivot:
    # how many samples have no answer is in a column anyway
    return Pivot.of(line for line in lines(results, groups=groups) if line.measure != _NO_ANSWER)


def _header(pivot: Pivot) -> list[str]:
    several = len(pivot.models) > 1
    cells = [f"{model}\n{name}" if several else name for model in pivot.models for name in _cells(pivot)]
    return [*_KINDS, *cells]


def _cells(pivot: Pivot) -> tuple[str, ...]:
    """Return the columns of each model: where they stand side by side, fewer."""
    return _CELLS if len(pivot.models) == 1 else _CELLS[:6]


def _body(pivot: Pivot) -> Iterator[tuple[list[str], Mapping[str, Line]]]:
    """Yield the words of every row, and its scores."""
    previous = ""
    counted: set[str] = set()
    for (benchmark, group, mode, measure), row in pivot.rows.items():
        name = f"{benchmark} {group}".strip()
        if name != previous:
            counted = set()
        words = [name if name != previous else "", f"{mode} {measure}"]
        for model in pivot.models:
            words += _cell(row.get(model), first=model not in counted)[: len(_cells(pivot))]
        previous = name
        counted |= row.keys()
        yield words, row


def _cell(line: Line | None, *, first: bool) -> list[str]:
    if line is None:
        return [""] * len(_CELLS)
    mark = "" if line.valid else f" {INVALID}"
    interval = "" if line.low is None else f"{line.low:.1f}–{line.high:.1f}"
    numbers = (line.no_answer, line.timed_out, line.truncated, line.failed)
    counts = [f"{number}/{line.total}" for number in numbers]
    once = [*counts, _number(line.avg_tokens, 0), _number(line.generation_seconds, 0)]
    # they are the same for all scores of a model on a benchmark
    return [f"{line.score:.2f}{mark}", interval, *(once if first else [""] * len(once))]


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _notes(pivot: Pivot) -> list[str]:
    """Return why scores are invalid, one sentence each."""
    invalid = {
        (f"{line.benchmark} {line.group}".strip(), line.model): line.why_invalid or "unknown reason"
        for row in pivot.rows.values()
        for line in row.values()
        if not line.valid
    }
    several = len(pivot.models) > 1
    return [
        f"{INVALID} {name}{f' of {model}' if several else ''} is not valid: {why}"
        for (name, model), why in invalid.items()
    ]
