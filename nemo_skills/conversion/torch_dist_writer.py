"""Plans files of weights as Megatron-Core's torch_dist stores them; torch makes names and headers only."""

import functools
import io
import pickle
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import orjson

from nemo_skills.conversion.byte_ranges import FilePlan, TensorData
from nemo_skills.conversion.dtypes import torch_name

_EXTRA_STATE_OF = (
    "self_attention.linear_qkv",
    "self_attention.linear_proj",
    "mlp.linear_fc1",
    "mlp.linear_fc2",
)
_FORMAT = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}


@dataclass(frozen=True)
class ChunkData:
    """A chunk to store: its place in the whole tensor, and its numbers."""

    key: str
    size: tuple[int, ...]
    """Of the whole tensor."""
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    data: TensorData


class _Stored(NamedTuple):
    file: str
    start: int
    length: int


class _Container(NamedTuple):
    head: bytes
    hole: int
    tail: bytes


def plan_weights(chunks: Iterable[ChunkData], layers: int, prefix: str, file_bytes: int) -> list[FilePlan]:
    """Return the files of a folder of weights: chunks in containers, metadata, and what loading demands."""
    chunks = list(chunks)
    files: list[list[bytes | TensorData]] = [[]]
    stored: list[_Stored] = []
    extra_states = list(_extra_states(layers, prefix))
    position = 0
    for _, payload in extra_states:
        files[0].append(payload)
        stored.append(_Stored(_file_name(0), position, len(payload)))
        position += len(payload)
    for chunk in chunks:
        container = _container(chunk.data.target, chunk.sizes)
        length = len(container.head) + container.hole + len(container.tail)
        assert container.hole == chunk.data.nbytes, chunk.key
        if files[-1] and position + length > file_bytes:
            files.append([])
            position = 0
        files[-1] += [container.head, chunk.data, container.tail]
        stored.append(_Stored(_file_name(len(files) - 1), position, length))
        position += length
    metadata = _metadata([key for key, _ in extra_states], chunks, stored)
    plans = [FilePlan(_file_name(index), tuple(parts)) for index, parts in enumerate(files)]
    common = io.BytesIO()
    _torch_save({}, common)
    small = {"common.pt": common.getvalue(), "metadata.json": orjson.dumps(_FORMAT), ".metadata": metadata}
    return plans + [FilePlan(name, (data,)) for name, data in small.items()]


def _file_name(index: int) -> str:
    return f"__0_{index}.distcp"


def _extra_states(layers: int, prefix: str) -> Iterator[tuple[str, bytes]]:
    """Yield the empty states of Transformer Engine's layers, without which strict loading fails."""
    nothing, payload = io.BytesIO(), io.BytesIO()
    _torch_save(None, nothing)
    _torch_save([io.BytesIO(nothing.getvalue())], payload)
    for layer in range(layers):
        for module in _EXTRA_STATE_OF:
            yield f"{prefix}decoder.layers.{module}._extra_state/shard_{layer}_{layers}", payload.getvalue()


def _torch_save(value: object, file: "io.BytesIO | _HoleSink") -> None:
    import torch

    torch.save(value, file)


@functools.lru_cache(maxsize=256)
def _container(dtype: str, sizes: tuple[int, ...]) -> _Container:
    """Return what torch.save writes before and after the numbers of a tensor."""
    import torch
    from torch.serialization import skip_data

    sink = _HoleSink()
    # memory that nobody touches takes no room
    with skip_data():
        torch.save(torch.empty(sizes, dtype=getattr(torch, torch_name(dtype))), sink)
    return _Container(bytes(sink.head), sink.hole, bytes(sink.tail))


class _HoleSink(io.RawIOBase):
    """Takes what torch.save writes, and notes the gap that it leaves for the numbers."""

    def __init__(self) -> None:
        self.head = bytearray()
        self.tail = bytearray()
        self.hole = 0

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        part = bytes(data)  # type: ignore[call-overload]
        (self.tail if self.hole else self.head).extend(part)
        return len(part)

    def seek(self, offset: int, whence: int = 0) -> int:
        assert whence == 1 and not self.hole, "torch.save leaves one gap"
        self.hole = offset
        return self.tell()

    def tell(self) -> int:
        return len(self.head) + self.hole + len(self.tail)


def _metadata(extra_keys: list[str], chunks: list[ChunkData], stored: list[_Stored]) -> bytes:
    import torch
    from torch.distributed.checkpoint import metadata as names
    from torch.distributed.checkpoint.filesystem import _StorageInfo

    entries: dict[str, object] = {key: names.BytesStorageMetadata() for key in extra_keys}
    indices = [names.MetadataIndex(key) for key in extra_keys]
    for chunk in chunks:
        if chunk.key not in entries:
            properties = names.TensorProperties(dtype=getattr(torch, torch_name(chunk.data.target)))
            entries[chunk.key] = names.TensorStorageMetadata(properties, torch.Size(chunk.size), [])
        place = names.ChunkStorageMetadata(torch.Size(chunk.offsets), torch.Size(chunk.sizes))
        entries[chunk.key].chunks.append(place)  # type: ignore[attr-defined]
        indices.append(names.MetadataIndex(chunk.key, chunk.offsets))
    infos = {i: _StorageInfo(s.file, s.start, s.length) for i, s in zip(indices, stored, strict=True)}
    metadata = names.Metadata(entries, storage_data=infos)
    # some versions of Megatron-Core look for this
    metadata.mcore_data = {}
    return pickle.dumps(metadata)
