"""Where the record of every row is: a table on disk, so that memory does not grow with the number of rows."""

import os
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Self

_ENTRY = struct.Struct("<QQQ")
_HELD = 4096
_READ = _ENTRY.size * 4096
_PIECE = 1 << 20
_PIECES = 64


class Place(NamedTuple):
    """Where a record is."""

    offset: int
    size: int
    key: int


class ReadAhead:
    """Has the system fetch what comes next in large pieces, where reads jump about in a small part of a file.

    Rows finish in nearly the order of the input, so that reading them in order stays within a few pieces.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._recent: dict[int, None] = {}
        self._reads = self._pieces = 0

    def want(self, offset: int) -> None:
        """Say where the next read is."""
        piece = offset // _PIECE
        self._reads += 1
        # where every read is in another piece, fetching whole pieces would only do harm
        if piece in self._recent or (self._pieces > _PIECES and self._pieces * 4 > self._reads):
            return
        self._pieces += 1
        os.posix_fadvise(self._descriptor, piece * _PIECE, _PIECE, os.POSIX_FADV_WILLNEED)
        self._recent[piece] = None
        if len(self._recent) > _PIECES:
            del self._recent[next(iter(self._recent))]


class PlaceTable:
    """Places by position; the file has no name and goes with the process, however that ends."""

    def __init__(self, folder: Path, first: int) -> None:
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 (closed by __exit__)
        self._first = first
        self._held: dict[int, Place] = {}

    def put(self, position: int, place: Place) -> None:
        """Note a place; of several for one position the last one counts."""
        self._held[position] = place
        if len(self._held) >= _HELD:
            self._write()

    def __iter__(self) -> Iterator[Place]:
        """Yield all places in the order of their positions."""
        self._write()
        offset = 0
        while data := os.pread(self._file.fileno(), _READ, offset):
            offset += len(data)
            for entry in _ENTRY.iter_unpack(data):
                if entry[1]:
                    yield Place(*entry)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _write(self) -> None:
        """Rows finish in nearly the order of their positions: a few writes take everything held."""
        run, start = bytearray(), 0
        for position in sorted(self._held):
            if position != start + len(run) // _ENTRY.size:
                self._write_run(run, start)
                run, start = bytearray(), position
            run += _ENTRY.pack(*self._held[position])
        self._write_run(run, start)
        self._held.clear()

    def _write_run(self, run: bytearray, start: int) -> None:
        offset = (start - self._first) * _ENTRY.size
        while run:
            written = os.pwrite(self._file.fileno(), run, offset)
            offset += written
            del run[:written]
