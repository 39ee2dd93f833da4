"""The mark that an output is complete, which also says what input it answers."""

import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import orjson

from nemo_skills.core.jsonl import Written, atomic_output, disk_errors
from nemo_skills.inference.survey import InputState

_KEY = 16
_PIECE = 1 << 20


class OutputStamp(NamedTuple):
    """By what an output is known to be as it was finished."""

    size: int
    modified_ns: int
    crc: int

    @classmethod
    def of(cls, path: Path, written: Written) -> "OutputStamp":
        """Take it from an output that was just written."""
        return cls(written.size, path.stat().st_mtime_ns, written.crc)

    def fits(self, path: Path) -> bool:
        """Whether a file is that output, by its time or else by its contents."""
        stat = path.stat()
        if stat.st_size != self.size:
            return False
        return stat.st_mtime_ns == self.modified_ns or _crc(path) == self.crc


@dataclass(frozen=True, kw_only=True)
class DoneMark:
    """What the `.done` file says: on its first line this, on the second the key of each row's input."""

    rows: int
    failed: int
    skipped: int
    source: InputState | None = None
    """The input; None where an older or other program wrote the mark."""
    output: OutputStamp | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What the answers were made with, as `answer_settings` tells it."""

    @classmethod
    def read(cls, path: Path) -> "DoneMark":
        """Read a mark; a file that says nothing counts as nothing known."""
        try:
            with path.open("rb") as file:
                data = orjson.loads(file.readline())
            return cls(
                rows=int(data["rows"]),
                failed=int(data["failed"]),
                skipped=int(data["skipped"]),
                source=InputState.decode(data.get("source")),
                output=OutputStamp(*data["output"]) if "output" in data else None,
                settings=dict(data.get("settings", {})),
            )
        except (OSError, ValueError, KeyError, TypeError):
            return cls(rows=0, failed=0, skipped=0)

    def write(self, path: Path, keys: Iterable[bytes] = ()) -> None:
        """Write the mark and pieces of its second line; afterwards the output counts as complete."""
        data: dict[str, Any] = {"rows": self.rows, "failed": self.failed, "skipped": self.skipped}
        if self.source is not None and self.output is not None:
            data |= {"source": self.source.encode(), "output": list(self.output)}
            data["settings"] = self.settings
        with disk_errors(path), atomic_output(path) as file:
            file.write(orjson.dumps(data) + b"\n")
            for piece in keys:
                file.write(piece)

    def renew(self, path: Path, source: InputState) -> None:
        """Note that input files which look different have the same rows."""
        replace(self, source=source).write(path, key_pieces(path))


def write_key(file: BinaryIO, key: int) -> None:
    """Add a key to what will be the second line of a mark."""
    file.write(b"%016x" % key)


def key_pieces(path: Path) -> Iterator[bytes]:
    """Yield the second line of a mark."""
    with path.open("rb") as file:
        file.readline()
        yield from pieces(file)


def pieces(file: BinaryIO) -> Iterator[bytes]:
    """Yield what is left of a file."""
    while piece := file.read(_PIECE):
        yield piece


def read_keys(path: Path) -> Iterator[int]:
    """Yield the `row_key` of the input of every row of an output, from its mark."""
    for piece in key_pieces(path):
        for at in range(0, len(piece), _KEY):
            yield int(piece[at : at + _KEY], 16)


def _crc(path: Path) -> int:
    crc = 0
    with path.open("rb", buffering=0) as file:
        for piece in pieces(file):
            crc = zlib.crc32(piece, crc)
    return crc
