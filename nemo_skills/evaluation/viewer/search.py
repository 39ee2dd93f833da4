"""Pages of rows that fit a filter, of one file or of two side by side."""

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from nemo_skills.evaluation.viewer.rows import STEP, RowFile, parse

PAGE_ROWS = 20
_PATIENCE_S = 2.0
"""A search that finds too little in this time shows what it has, and where to go on."""

DIFFERS = "differs"
"""Stands for rows whose verdicts in the two files are not the same."""


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Which rows are shown."""

    verdict: str = ""
    """A verdict, `DIFFERS`, or empty for all."""
    text: str = ""
    """Found in any text of a row, in capitals or not."""

    @property
    def is_empty(self) -> bool:
        """Whether it lets all rows through."""
        return not (self.verdict or self.text)

    def fits(self, lines: Sequence[bytes | None]) -> bool:
        """Whether a row of one of the files fits."""
        if self.is_empty:
            return True
        # most lines need not be parsed; letters and digits stand in JSON as they are
        plain = self.text.casefold().encode() if self.text.isascii() and self.text.isalnum() else b""
        if plain and not any(line and plain in line.lower() for line in lines):
            return False
        if self.verdict and self.verdict != DIFFERS:
            name = self.verdict.encode()
            if not any(line and name in line for line in lines):
                return False
        rows = [parse(line) for line in lines if line]
        return self._verdict_fits(rows, len(lines)) and self._text_fits(rows)

    def _verdict_fits(self, rows: Sequence[dict[str, Any]], files: int) -> bool:
        verdicts = [row.get("verdict") for row in rows]
        if self.verdict == DIFFERS:
            return len(rows) < files or len(set(map(str, verdicts))) > 1
        return not self.verdict or self.verdict in verdicts

    def _text_fits(self, rows: Sequence[dict[str, Any]]) -> bool:
        wanted = self.text.casefold()
        return not wanted or any(wanted in text.casefold() for row in rows for text in _texts(row))


EVERYTHING = Filter()


@dataclass(frozen=True, kw_only=True)
class Found:
    """A row, and the same one of the second file."""

    number: int
    rows: tuple[dict[str, Any] | None, ...]


@dataclass(frozen=True, kw_only=True)
class Page:
    """Rows to show."""

    found: tuple[Found, ...]
    before: int | None
    """Where the search for earlier rows begins; None at the beginning."""
    after: int | None
    """Where the search for later rows begins; None at the end."""
    unfinished: bool = False
    """Whether the search ended early: there may be more up to `after`, or down to `before`."""


def forward(files: Sequence[RowFile], start: int, what: Filter) -> Page:
    """Return the first rows from `start` on that fit."""
    deadline = time.monotonic() + _PATIENCE_S
    found: list[Found] = []
    number = start
    for number, lines in _together(files, start):
        if len(found) == PAGE_ROWS:
            return _page(found, start, number)
        if number % STEP == 0 and time.monotonic() > deadline:
            return _page(found, start, number, unfinished=True)
        if what.fits(lines):
            found.append(_found(number, lines))
    return _page(found, start, None)


def backward(files: Sequence[RowFile], end: int, what: Filter) -> Page:
    """Return the last rows before `end` that fit."""
    deadline = time.monotonic() + _PATIENCE_S
    found: list[Found] = []
    while end > 0 and len(found) < PAGE_ROWS and time.monotonic() < deadline:
        start = (end - 1) // STEP * STEP
        blocks = [file.block(start, end) for file in files]
        fitting = [
            _found(start + index, lines)
            for index, lines in enumerate(itertools.zip_longest(*blocks))
            if what.fits(lines)
        ]
        found = fitting[-(PAGE_ROWS - len(found)) :] + found
        end = found[0].number if len(found) == PAGE_ROWS else start
    after = found[-1].number + 1 if found else end
    unfinished = end > 0 and len(found) < PAGE_ROWS
    return Page(found=tuple(found), before=end or None, after=after, unfinished=unfinished)


def _together(files: Sequence[RowFile], start: int) -> Iterator[tuple[int, tuple[bytes | None, ...]]]:
    return enumerate(itertools.zip_longest(*(file.lines(start) for file in files)), start=start)


def _page(found: list[Found], start: int, after: int | None, *, unfinished: bool = False) -> Page:
    return Page(found=tuple(found), before=start or None, after=after, unfinished=unfinished)


def _found(number: int, lines: Sequence[bytes | None]) -> Found:
    return Found(number=number, rows=tuple(None if line is None else parse(line) for line in lines))


def _texts(value: Any) -> Iterator[str]:
    """Yield all texts inside a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
    elif value is not None:
        yield str(value)
