"""Rows of a JSONL file of any size by their number, without loading it."""

import threading
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import orjson

STEP = 256
"""Rows between two places that the index knows."""
_SLICE_ROWS = 50_000


class _State(NamedTuple):
    """What tells a file from another one at its place."""

    inode: int
    size: int

    def is_of(self, earlier: "_State") -> bool:
        """Whether it is the same file, which may have grown."""
        return self.inode == earlier.inode and self.size >= earlier.size


class RowFile:
    """Random access to lines through a sparse index, which grows as far as it has been read.

    Memory: 8 bytes for every `STEP` rows.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._indexing: threading.Thread | None = None
        self._forget(self._look())

    def count(self) -> int | None:
        """Return the number of rows; None while they are being counted."""
        now = self._look()
        return self._rows if now.is_of(self._seen) and self._bytes >= now.size else None

    def index(self) -> None:
        """Read the whole file once; returns when all rows are known."""
        while self.count() is None:
            self._extend(self._rows + _SLICE_ROWS)

    def index_in_background(self) -> None:
        """Start to count the rows, if that has not been done."""
        if self.count() is None and (self._indexing is None or not self._indexing.is_alive()):
            self._indexing = threading.Thread(target=self.index, daemon=True)
            self._indexing.start()

    def lines(self, start: int) -> Iterator[bytes]:
        """Yield the lines from a row on; blank ones are empty."""
        self._extend(start + 1)
        if start > self._rows:
            return
        with self.path.open("rb") as file:
            file.seek(self._marks[min(start // STEP, len(self._marks) - 1)])
            skip = start % STEP if start // STEP < len(self._marks) else start - (len(self._marks) - 1) * STEP
            for number, line in enumerate(file):
                if number >= skip:
                    yield line.rstrip(b"\n")

    def block(self, start: int, end: int) -> list[bytes]:
        """Return the lines of rows `start` to `end - 1`, as many as there are."""
        lines = self.lines(start)
        return [line for line, _ in zip(lines, range(end - start), strict=False)]

    def _look(self) -> "_State":
        stat = self.path.stat()
        return _State(stat.st_ino, stat.st_size)

    def _forget(self, state: "_State") -> None:
        self._seen = state
        self._marks = array("Q", [0])
        self._rows = self._bytes = 0

    def _extend(self, rows: int) -> None:
        """Know where rows begin, up to so many, if there are."""
        with self._lock:
            now = self._look()
            if not now.is_of(self._seen):
                # another file has taken its place, as when answers are graded
                self._forget(now)
            if self._rows < rows:
                with self.path.open("rb") as file:
                    self._read(file, rows)

    def _read(self, file: BinaryIO, rows: int) -> None:
        file.seek(self._bytes)
        for line in file:
            self._bytes += len(line)
            self._rows += 1
            if self._rows % STEP == 0:
                self._marks.append(self._bytes)
                if self._rows >= rows:
                    break


def parse(line: bytes) -> dict[str, Any]:
    """Return a row; what is no JSON object is shown as it is."""
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError:
        row = None
    return row if isinstance(row, dict) else {"malformed line": line.decode(errors="replace")}
