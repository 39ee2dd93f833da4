"""Reading JSONL one row at a time, with errors that name file and line."""

import difflib
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from nemo_skills.core.errors import UserError

_BUFFER = 1 << 20
_BOM = b"\xef\xbb\xbf"


class BadRowError(UserError):
    """A line of an input file that is no usable row."""


class Line(NamedTuple):
    """One row's text and where it stands."""

    position: int
    """0-based number of the row; blank lines do not count."""
    number: int
    """1-based number of the line in the file, for messages."""
    raw: bytes
    """The text of the row without surrounding white space."""


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


def iter_lines(path: Path, start: int = 0, stop: int | None = None) -> Iterator[Line]:
    """Yield the rows with positions from `start` up to, not including, `stop`; blank lines do not count."""
    position = 0
    with path.open("rb", buffering=_BUFFER) as file:
        for number, text in enumerate(file, 1):
            if stop is not None and position >= stop:
                return
            raw = text.removeprefix(_BOM).strip() if number == 1 else text.strip()
            if not raw:
                continue
            if position >= start:
                yield Line(position, number, raw)
            position += 1


def count_rows(path: Path) -> int:
    """Count the rows of a file without parsing them."""
    with path.open("rb", buffering=_BUFFER) as file:
        return sum(1 for text in file if not (text.isspace() or text.strip() == _BOM))


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


def row_check(raw: bytes) -> int:
    """Return a checksum by which an edited row is noticed."""
    return zlib.crc32(raw)


def _kind(value: object) -> str:
    names = {list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), "null")
