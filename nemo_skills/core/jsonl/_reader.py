"""Reading JSONL one row at a time or many, with errors that name file and line."""

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from nemo_skills.core.errors import UserError
from nemo_skills.core.jsonl._open import iter_text

_BOM = b"\xef\xbb\xbf"


class BadRowError(UserError):
    """A line of an input file that is no usable row."""


class Line(NamedTuple):
    """One row's text and where it stands."""

    position: int
    """0-based number of the row; blank lines do not count."""
    number: int
    """1-based number of the line in its file, for messages."""
    raw: bytes
    """The text of the row without surrounding white space."""
    path: Path = Path()
    """The file."""

    @property
    def place(self) -> str:
        """File and line, for messages."""
        return f"{self.path}:{self.number}"


class Block(NamedTuple):
    """Neighbouring rows of a file: handling many at once is several times faster than one by one."""

    position: int
    """Of the first row."""
    path: Path
    rows: Sequence[bytes]
    """The texts of the rows without surrounding white space."""
    numbers: Sequence[int]
    """The 1-based numbers of their lines."""

    def line(self, index: int) -> Line:
        """Return one of the rows."""
        return Line(self.position + index, self.numbers[index], self.rows[index], self.path)

    def part(self, start: int, stop: int) -> "Block":
        """Return the rows with positions from `start` up to, not including, `stop`."""
        if start <= self.position and stop >= self.position + len(self.rows):
            return self
        cut = slice(max(start - self.position, 0), max(stop - self.position, 0))
        return Block(self.position + cut.start, self.path, self.rows[cut], self.numbers[cut])


def check_input(path: Path) -> None:
    """Raise a `UserError` unless `path` is a file that can be read."""
    if path.is_dir():
        raise UserError(f"{path} is a folder, not a JSONL file.")
    try:
        path.open("rb").close()
    except FileNotFoundError:
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, siblings, n=1)
        hint = f" Did you mean '{path.with_name(near[0])}'?" if near else ""
        raise UserError(f"Input file {path} does not exist.{hint}") from None
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error


def iter_blocks(path: Path, position: int = 0) -> Iterator[Block]:
    """Yield all rows of a file, of which the first is at `position`; blank lines do not count."""
    number = 1
    for lines in _iter_lines(path):
        numbers: Sequence[int] = range(number, number + len(lines))
        if number == 1:
            lines[0] = lines[0].removeprefix(_BOM)
        number += len(lines)
        rows = list(map(bytes.strip, lines))
        if b"" in rows:
            numbers = [number for number, row in zip(numbers, rows, strict=True) if row]
            rows = [row for row in rows if row]
        yield Block(position, path, rows, numbers)
        position += len(rows)


def iter_lines(path: Path, start: int = 0, stop: int | None = None) -> Iterator[Line]:
    """Yield the rows with positions from `start` up to, not including, `stop`."""
    for block in iter_blocks(path):
        end = block.position + len(block.rows)
        for position in range(max(start, block.position), end if stop is None else min(end, stop)):
            yield block.line(position - block.position)
        if stop is not None and end >= stop:
            return


def count_rows(path: Path) -> int:
    """Count the rows of a file without parsing them."""
    return sum(len(block.rows) for block in iter_blocks(path))


def parse_row(path: Path, line: Line) -> dict[str, Any]:
    """Parse one row.

    Raises:
        BadRowError: the line is not JSON, or not an object; the message names file and line.
    """
    try:
        row = orjson.loads(line.raw)
    except orjson.JSONDecodeError as error:
        raise BadRowError(f"{path}:{line.number}: not valid JSON: {error}") from None
    if not isinstance(row, dict):
        raise BadRowError(f"{path}:{line.number}: a row must be a JSON object, not {_kind(row)}.")
    return row


def _iter_lines(path: Path) -> Iterator[list[bytes]]:
    """Yield the lines of a file, many at a time."""
    begun: list[bytes] = []
    for piece in iter_text(path):
        whole, newline, rest = piece.rpartition(b"\n")
        if newline:
            yield b"".join([*begun, whole]).split(b"\n")
            begun = []
        begun.append(rest)
    if last := b"".join(begun):
        yield [last]


def _kind(value: object) -> str:
    names = {list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), "null")
