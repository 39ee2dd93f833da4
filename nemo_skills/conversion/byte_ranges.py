"""Files planned as constant bytes and ranges of other files, and written without a tensor in memory."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_skills.conversion.dtypes import torch_name
from nemo_skills.core.errors import UserError
from nemo_skills.core.safetensors import ITEM_SIZES

if TYPE_CHECKING:
    import torch

BLOCK = 1 << 20
"""Bytes that are moved at a time: what fits into a processor's cache is fastest."""


@dataclass(frozen=True, slots=True)
class Column:
    """The part of each of some rows that lies in one file, row after row without gaps."""

    file: str
    start: int
    """Where the first row's part begins."""
    width: int
    """Bytes of each row."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of a matrix; those that tensor parallelism has split along their length have several columns."""

    columns: tuple[Column, ...]
    count: int

    @property
    def nbytes(self) -> int:
        """How many bytes all rows take."""
        return self.count * sum(column.width for column in self.columns)


@dataclass(frozen=True, slots=True)
class TensorData:
    """The numbers of a tensor in their final order, wherever they lie now."""

    name: str
    rows: tuple[Rows, ...]
    source: str
    target: str
    """Types, as safetensors names them; numbers are cast where they differ."""

    @property
    def nbytes(self) -> int:
        """How many bytes the result takes."""
        read = sum(rows.nbytes for rows in self.rows)
        return read // ITEM_SIZES[self.source] * ITEM_SIZES[self.target]


@dataclass(frozen=True, slots=True)
class FilePlan:
    """A file to write: its name in the result, and what it consists of."""

    name: str
    parts: tuple[bytes | TensorData, ...]

    @property
    def nbytes(self) -> int:
        """The file's size."""
        return sum(len(part) if isinstance(part, bytes) else part.nbytes for part in self.parts)


def copy_of(name: str, path: Path) -> FilePlan:
    """Return the plan of a file that is the same as another."""
    column = Column(str(path), 0, path.stat().st_size)
    return FilePlan(name, (TensorData(name, (Rows((column,), 1),), "U8", "U8"),))


class Source:
    """Reads ranges of files; keeps the files open, and one buffer."""

    def __init__(self) -> None:
        self._descriptors: dict[str, int] = {}
        self._buffer = memoryview(bytearray(BLOCK))

    def __enter__(self) -> "Source":
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    def blocks(self, data: TensorData) -> Iterator[memoryview]:
        """Yield the bytes of a tensor, cast; a block is valid until the next one is asked for."""
        blocks = (block for rows in data.rows for block in self._rows(rows))
        if data.source == data.target:
            return blocks
        return (_cast(block, data) for block in blocks)

    def _rows(self, rows: Rows) -> Iterator[memoryview]:
        if len(rows.columns) == 1:
            (column,) = rows.columns
            yield from self._range(column.file, column.start, rows.nbytes)
        else:
            yield from self._joined(rows)

    def _range(self, file: str, start: int, length: int) -> Iterator[memoryview]:
        for offset in range(0, length, BLOCK):
            block = self._buffer[: min(BLOCK, length - offset)]
            self._fill(block, file, start + offset)
            yield block

    def _joined(self, rows: Rows) -> Iterator[memoryview]:
        """Yield blocks of whole rows, put together from columns."""
        import numpy

        width = sum(column.width for column in rows.columns)
        height = max(1, BLOCK // width)
        for first in range(0, rows.count, height):
            count = min(height, rows.count - first)
            joined = numpy.empty((count, width), dtype=numpy.uint8)
            left = 0
            for column in rows.columns:
                part = numpy.empty((count, column.width), dtype=numpy.uint8)
                self._fill(part.data.cast("B"), column.file, column.start + first * column.width)
                joined[:, left : left + column.width] = part
                left += column.width
            yield joined.data.cast("B")

    def _fill(self, block: memoryview, file: str, start: int) -> None:
        if file not in self._descriptors:
            self._descriptors[file] = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        filled = 0
        while filled < len(block):
            count = os.preadv(self._descriptors[file], [block[filled:]], start + filled)
            if not count:
                raise UserError(f"{file} was cut off while it was read")
            filled += count


def _cast(block: memoryview, data: TensorData) -> memoryview:
    import torch

    values = torch.frombuffer(block, dtype=_torch_dtype(data.source))
    cast = values.to(_torch_dtype(data.target))
    lost = cast.isinf() & ~values.isinf()
    if lost.any():
        worst = values[lost].abs().max().item()
        raise UserError(f"tensor {data.name} holds {worst:g}, which {torch_name(data.target)} cannot hold")
    return memoryview(cast.view(torch.uint8).numpy())


def _torch_dtype(dtype: str) -> "torch.dtype":
    import torch

    found = getattr(torch, torch_name(dtype))
    assert isinstance(found, torch.dtype)
    return found


def write_plan(plan: FilePlan, path: Path, start: int = 0) -> None:
    """Write a planned file, durably; with `start`, into a larger file that exists already."""
    flags = os.O_WRONLY | os.O_CLOEXEC | (0 if start else os.O_CREAT | os.O_TRUNC)
    descriptor = os.open(path, flags, 0o666)
    try:
        with Source() as source:
            position = start
            for part in plan.parts:
                for block in [memoryview(part)] if isinstance(part, bytes) else source.blocks(part):
                    position = _write_all(descriptor, block, position)
        assert position == start + plan.nbytes, plan.name
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, block: memoryview, position: int) -> int:
    while block:
        count = os.pwrite(descriptor, block, position)
        block = block[count:]
        position += count
    return position
