"""Reads weights as Megatron-Core's torch_dist stores them, without torch and without Megatron."""

import io
import itertools
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from nemo_skills.conversion.byte_ranges import Column, Rows
from nemo_skills.conversion.dtypes import from_torch
from nemo_skills.conversion.nemo_files import CheckpointFiles, FileSlice
from nemo_skills.conversion.stand_ins import StandInUnpickler, TensorRecord
from nemo_skills.core.errors import UserError
from nemo_skills.core.safetensors import ITEM_SIZES

_STORAGES = {"F64": "DoubleStorage", "F32": "FloatStorage", "BF16": "BFloat16Storage", "F16": "HalfStorage"}
_LOCAL_HEADER = 30
_LOCAL_LENGTHS = slice(26, 30)


@dataclass(frozen=True)
class StoredChunk:
    """A block of a tensor: where it belongs, and the container that it is in."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    container: FileSlice


@dataclass(frozen=True)
class StoredTensor:
    """A tensor, in chunks."""

    key: str
    dtype: str
    size: tuple[int, ...]
    chunks: tuple[StoredChunk, ...]
    _by_layer: dict[int, list[StoredChunk]] = field(default_factory=dict, compare=False)

    def of_layer(self, layer: int) -> list[StoredChunk]:
        """Return the chunks that hold something of a layer, where layers are stacked."""
        if not self._by_layer:
            for chunk in self.chunks:
                for index in range(chunk.offsets[0], chunk.offsets[0] + chunk.sizes[0]):
                    self._by_layer.setdefault(index, []).append(chunk)
        return self._by_layer.get(layer, [])


@dataclass(frozen=True)
class _Block:
    """The part of a chunk that lies in the rows that are asked for."""

    first: int
    last: int
    left: int
    width: int
    start: int
    file: str


class TorchDistReader:
    """The tensors of a checkpoint.

    Raises:
        UserError: its metadata or a weight file is damaged.
    """

    def __init__(self, files: CheckpointFiles) -> None:
        self._files = files
        self._starts: dict[StoredChunk, int] = {}
        name = f"{files.weights}.metadata"
        self._where = f"{files.where}: {name}"
        metadata = StandInUnpickler(files.read(name), self._where).read()
        try:
            self.tensors = dict(self._tensors(metadata))
        except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
            raise UserError(f"{self._where} is not as Megatron-Core writes it: {error}") from error

    def _tensors(self, metadata: Any) -> Iterator[tuple[str, StoredTensor]]:
        places = {
            (index.fqn, tuple(index.offset)): self._container(info)
            for index, info in metadata.storage_data.items()
            if getattr(index, "offset", None) is not None and not is_training_state(index.fqn)
        }
        for key, entry in metadata.state_dict_metadata.items():
            if not hasattr(entry, "chunks") or is_training_state(key):
                continue
            torch_dtype = str(entry.properties.state[0])
            dtype = from_torch(torch_dtype)
            if dtype is None:
                raise UserError(f"{self._files.where}: tensor {key} is {torch_dtype}, which is not supported")
            chunks = tuple(
                StoredChunk(chunk.offsets, chunk.sizes, places[key, chunk.offsets]) for chunk in entry.chunks
            )
            yield key, StoredTensor(key, dtype, entry.size, chunks)

    def _container(self, info: Any) -> FileSlice:
        name = f"{self._files.weights}{info.relative_path}"
        file = self._files.slices.get(name)
        if file is None:
            raise UserError(f"{self._files.where}: {name} is missing")
        if info.offset + info.length > file.size:
            sizes = f"it has {file.size:,} bytes, {info.offset + info.length:,} are needed"
            raise UserError(f"{self._files.where}: {name} was cut off: {sizes}")
        return FileSlice(file.path, file.start + info.offset, info.length)

    def rows(self, tensor: StoredTensor, layer: int | None, row: int, count: int) -> list[Rows]:
        """Return where some rows of a matrix, or of one layer of stacked matrices, lie.

        Raises:
            UserError: chunks do not cover them, or a chunk is damaged.
        """
        chunks = list(tensor.chunks) if layer is None else tensor.of_layer(layer)
        found = [self._block(tensor, chunk, layer, (row, row + count)) for chunk in chunks]
        blocks = [block for block in found if block is not None]
        edges = sorted({row, row + count, *(e for block in blocks for e in (block.first, block.last))})
        width = _width(tensor.size[1 if layer is None else 2 :], tensor)
        rows = []
        for first, last in itertools.pairwise(edges):
            across = sorted((b for b in blocks if b.first <= first and b.last >= last), key=lambda b: b.left)
            if [block.left for block in across] != _lefts(across) or sum(b.width for b in across) != width:
                raise UserError(f"{self._where}: chunks of {tensor.key} do not cover row {first}")
            columns = tuple(Column(b.file, b.start + (first - b.first) * b.width, b.width) for b in across)
            rows.append(Rows(columns, last - first))
        return rows

    def _block(
        self, tensor: StoredTensor, chunk: StoredChunk, layer: int | None, wanted: tuple[int, int]
    ) -> _Block | None:
        stacked = 0 if layer is None else 1
        top, height = chunk.offsets[stacked], chunk.sizes[stacked]
        first, last = max(top, wanted[0]), min(top + height, wanted[1])
        if last <= first:
            return None
        width = _width(chunk.sizes[stacked + 1 :], tensor)
        # an axis of length one after the rows is all that a vector lacks
        left = (
            chunk.offsets[stacked + 1] * ITEM_SIZES[tensor.dtype] if len(chunk.offsets) > stacked + 1 else 0
        )
        above = (0 if layer is None else layer - chunk.offsets[0]) * height + first - top
        start = self._data_start(tensor, chunk) + above * width
        return _Block(first, last, left, width, start, str(chunk.container.path))

    def _data_start(self, tensor: StoredTensor, chunk: StoredChunk) -> int:
        if chunk not in self._starts:
            try:
                self._starts[chunk] = _find_data(tensor, chunk)
            except UserError:
                raise
            except Exception as error:  # damage has many faces: offsets, compression, pickles
                where = f"{chunk.container.path} at {chunk.container.start:,}"
                raise UserError(f"{where}: the data of {tensor.key} is damaged: {error}") from error
        return self._starts[chunk]


def is_training_state(key: str) -> bool:
    """Whether an entry belongs to training and not to the model."""
    return "_extra_state" in key or key.startswith(
        ("optimizer", "chained_", "rng_state", "rerun_state", "opt_param_scheduler")
    )


def _width(rest: tuple[int, ...], tensor: StoredTensor) -> int:
    width = ITEM_SIZES[tensor.dtype]
    for length in rest:
        width *= length
    return width


def _lefts(blocks: list[_Block]) -> list[int]:
    lefts = [0]
    for block in blocks:
        lefts.append(lefts[-1] + block.width)
    return lefts[:-1]


def _find_data(tensor: StoredTensor, chunk: StoredChunk) -> int:
    """Return where in the file the numbers of a chunk begin; what torch.save wrote is a zip archive."""
    piece = chunk.container
    with piece.path.open("rb", buffering=0) as file, zipfile.ZipFile(_View(file, piece)) as archive:
        members = {name.partition("/")[2]: info for name, info in archive.NameToInfo.items()}
        header = StandInUnpickler(archive.read(members["data.pkl"]), str(piece.path)).read()
        while isinstance(header, TensorRecord) and isinstance(header.args[0], TensorRecord):
            header = header.args[0]  # a parameter around its tensor
        storage, offset, size, strides, *_ = header.args
        data = members[f"data/{storage[2]}"]
        order = members.get("byteorder")
        little = order is None or archive.read(order) == b"little"
        whole = data.file_size == _width(chunk.sizes, tensor) and data.compress_type == zipfile.ZIP_STORED
        if (tuple(size), offset, tuple(strides)) != (chunk.sizes, 0, _contiguous(chunk.sizes)):
            raise ValueError("it is stored in another order of numbers than metadata says")
        if storage[1].__name__ != _STORAGES[tensor.dtype]:
            raise ValueError(f"it is a {storage[1].__name__}, metadata says {tensor.dtype}")
        if not (little and whole):
            raise ValueError("it is not as long as metadata says")
        file.seek(piece.start + data.header_offset)
        lengths = file.read(_LOCAL_HEADER)[_LOCAL_LENGTHS]
        names = int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
        return piece.start + data.header_offset + _LOCAL_HEADER + names


def _contiguous(sizes: tuple[int, ...]) -> tuple[int, ...]:
    strides = [1]
    for length in reversed(sizes[1:]):
        strides.insert(0, strides[0] * max(1, length))
    return tuple(strides) if sizes else ()


class _View(io.RawIOBase):
    """A part of a file, as a file."""

    def __init__(self, file: io.FileIO, piece: FileSlice) -> None:
        self._file = file
        self._piece = piece
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._piece.size}[whence]
        self._position = base + offset
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self._piece.size - self._position)
        count = left if size is None or size < 0 else min(size, left)
        data = os.pread(self._file.fileno(), count, self._piece.start + self._position)
        self._position += len(data)
        return data
