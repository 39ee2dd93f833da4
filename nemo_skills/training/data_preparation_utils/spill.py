"""Rows on disk, sorted into parts that fit in memory.

The file has no name: whatever ends the process, nothing is left behind. Every task of a stage writes one run,
in which the records of a part lie together; a part is read back from all runs.
"""

import multiprocessing
import os
import struct
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import NamedTuple, Self

from nemo_skills.core.jsonl import disk_errors

HEADER = struct.Struct("<QQ16sI")
"""Order of the row, number that decides about its split, key of its group, length of its text."""
_COUNT = struct.Struct("<I")


Record = tuple[int, int, bytes, bytes]
"""A row on disk: what the header says, but for the length, and the text."""


class Run(NamedTuple):
    """What one task has written."""

    start: int
    """Where in the file."""
    bounds: "array[int]"
    """Where each part begins, from there on, and where the last one ends."""


class RunWriter:
    """Collects the records of one task."""

    def __init__(self, parts: int) -> None:
        self._headers: list[list[bytes]] = [[] for _ in range(parts)]
        self._texts: list[list[bytes]] = [[] for _ in range(parts)]

    def put(self, part: int, order: int, split: int, group: bytes, raw: bytes) -> None:
        """Add a record."""
        self._headers[part].append(HEADER.pack(order, split, group, len(raw)))
        self._texts[part].append(raw)

    def encoded(self) -> tuple[bytes, "array[int]"]:
        """Return the bytes of all parts, one after the other, and where each begins and the last one ends."""
        pieces: list[bytes] = []
        sizes = []
        for headers, texts in zip(self._headers, self._texts, strict=True):
            if headers:
                pieces += (_COUNT.pack(len(headers)), *headers, *texts)
            sizes.append((len(headers) * HEADER.size + _COUNT.size + sum(map(len, texts))) if headers else 0)
        return b"".join(pieces), array("Q", accumulate(sizes, initial=0))


class Spill:
    """A temporary file that several processes write; made before they are forked."""

    def __init__(self, folder: Path, parts: int) -> None:
        self.parts = parts
        self.runs: list[Run] = []
        self._folder = folder
        with disk_errors(folder):
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 (closed by __exit__)
        self._end = multiprocessing.get_context("fork").Value("q", 0)

    @property
    def size(self) -> int:
        """How many bytes it has."""
        return int(self._end.value)

    def write(self, writer: RunWriter) -> Run:
        """Write the records of a task; the process that reads must `runs.append` what this returns."""
        encoded, bounds = writer.encoded()
        with self._end.get_lock():
            start = int(self._end.value)
            self._end.value += bounds[-1]
        data = memoryview(encoded)
        with disk_errors(self._folder, "This is where rows are sorted; ++tmp_dir=... chooses another place."):
            offset = start
            while data:
                written = os.pwrite(self._file.fileno(), data, offset)
                offset, data = offset + written, data[written:]
        return Run(start, bounds)

    def read(self, part: int, runs: Sequence[Run] | None = None) -> list[Record]:
        """Return the records of a part, sorted by their order."""
        records: list[Record] = []
        for run in self.runs if runs is None else runs:
            size = run.bounds[part + 1] - run.bounds[part]
            if size:
                records += _decode(self._pread(run.start + run.bounds[part], size))
        records.sort()
        return records

    def _pread(self, offset: int, size: int) -> bytes:
        pieces = []
        while size:
            piece = os.pread(self._file.fileno(), size, offset)
            if not piece:
                raise OSError("a temporary file has become shorter")
            pieces.append(piece)
            offset, size = offset + len(piece), size - len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def close(self) -> None:
        """Give the room on the disk back."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _decode(data: bytes) -> Iterator[Record]:
    (count,) = _COUNT.unpack_from(data)
    begin = _COUNT.size + count * HEADER.size
    headers = HEADER.iter_unpack(memoryview(data)[_COUNT.size : begin])
    orders, splits, groups, lengths = zip(*headers, strict=True)
    bounds = pairwise(accumulate(lengths, initial=begin))
    return zip(orders, splits, groups, [data[start:stop] for start, stop in bounds], strict=True)
