"""The help pages of `ns`: panels of options, drawn with the light half of rich.

Typer's own help imports rich's Markdown, syntax and traceback parts, three times the start of Typer itself.
"""

import inspect
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import NamedTuple

from rich.console import Console
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from nemo_skills.pipeline.declare import Option
from nemo_skills.pipeline.tokens import HELP_FLAGS, Rest
from nemo_skills.pipeline.wrapper import AnyWrapper

_WIDEST_PAGE = 120
_TAKES = {Rest.OVERRIDES: "[++name=value]...", Rest.COMMAND: "COMMAND...", Rest.NOTHING: ""}


class Row(NamedTuple):
    """An option or a command, as one row of a panel."""

    name: str
    metavar: str
    help: str
    note: str = ""


class Section(NamedTuple):
    """A panel."""

    title: str
    rows: Sequence[Row]


HELP_ROW = Row(", ".join(HELP_FLAGS), "", "Show this page.")


def show_command(name: str, wrapper: AnyWrapper) -> None:
    """Print the help page of a wrapper."""
    about = _paragraphs(wrapper.__doc__ or "")
    if wrapper.main:
        about += [
            f"It runs {wrapper.main}. To list that script's own arguments:",
            f"    python -m {wrapper.main} --help",
        ]
    sections = [
        Section(panel, [_row(option) for option in options])
        for panel, options in groupby(wrapper.options.values(), key=lambda option: option.panel)
    ]
    places = [_place(option) for option in wrapper.options.values() if option.place]
    usage = " ".join(["ns", name, *places, "[--option=value]...", _TAKES[wrapper.rest]]).rstrip()
    show(usage, about, [*sections, Section("Help", [HELP_ROW])])


def show(usage: str, about: Iterable[str], sections: Sequence[Section]) -> None:
    """Print a help page, its columns aligned over all sections."""
    console = Console(highlight=False)
    console.width = min(console.width, _WIDEST_PAGE)
    console.print(Text.assemble("\n", ("Usage: ", "yellow"), (usage, "bold"), "\n"))
    for paragraph in about:
        console.print(Padding(Text(paragraph), (0, 1, 1, 1), expand=False))
    rows = [row for section in sections for row in section.rows]
    widths = [max(len(row.name) for row in rows), max(len(row.metavar) for row in rows)]
    for section in sections:
        console.print(
            Panel(_table(section.rows, widths), title=section.title, title_align="left", style="none")
        )


def _table(rows: Iterable[Row], widths: Sequence[int]) -> Table:
    table = Table.grid(padding=(0, 2), expand=True)
    table.add_column(min_width=widths[0], no_wrap=True, style="bold cyan")
    table.add_column(min_width=widths[1], no_wrap=True, style="yellow")
    table.add_column(ratio=1)
    for row in rows:
        text = Text.assemble(row.help, (f" [{row.note}]" if row.note else "", "dim"))
        table.add_row(Text(row.name), Text(row.metavar), text)
    return table


def _row(option: Option) -> Row:
    if option.required:
        note = "required"
    elif option.is_flag or option.default in (None, "", ()):
        note = ""
    else:
        note = f"default: {option.default}"
    return Row(f"--{option.name}", option.metavar, option.help, note)


def _place(option: Option) -> str:
    place = option.place if option.required else f"[{option.place}]"
    return f"{place}..." if option.is_list else place


def _paragraphs(docstring: str) -> list[str]:
    return [" ".join(paragraph.split()) for paragraph in inspect.cleandoc(docstring).split("\n\n")]
