"""Hugging Face model folders as streams of bytes: read piece by piece, written shard by shard."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import orjson

from nemo_skills.core.errors import UserError
from nemo_skills.core.jsonl import write_file

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
ITEM_SIZES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
"""Names of types, as the format has them, to bytes for each number."""
_LENGTH_BYTES = 8
_LONGEST_HEADER = 100_000_000
_OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".distcp", ".h5", ".msgpack", ".gguf", ".onnx", ".nemo")


@dataclass(frozen=True)
class TensorKind:
    """What tensors of one name have in common."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """How many bytes it takes."""
        size = ITEM_SIZES[self.dtype]
        for length in self.shape:
            size *= length
        return size


@dataclass(frozen=True)
class Place:
    """Where the bytes of a tensor begin."""

    file: Path
    start: int


class SafetensorsFolder:
    """The tensors of a model folder, in the order in which they lie on the disk; nothing is kept in memory.

    Raises:
        UserError: the folder has no weights in this format, or a file is cut off or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kinds: dict[str, TensorKind] = {}
        self._places: dict[str, Place] = {}
        self._open: tuple[Path, BinaryIO] | None = None
        for file in self._weight_files():
            self._read_header(file)

    @property
    def nbytes(self) -> int:
        """Size of all tensors."""
        return sum(kind.nbytes for kind in self.kinds.values())

    @property
    def weight_files(self) -> list[Path]:
        """The files that hold tensors."""
        return list(dict.fromkeys(place.file for place in self._places.values()))

    @property
    def other_files(self) -> list[Path]:
        """Config, tokenizer and the like: all files beside the weights."""
        return [p for p in sorted(self.folder.iterdir()) if p.is_file() and not is_weight_file(p.name)]

    def place(self, name: str) -> Place:
        """Return where a tensor lies."""
        return self._places[name]

    def read_into(self, name: str, start: int, buffer: memoryview) -> None:
        """Fill a buffer with the bytes of a tensor from `start` on."""
        place = self._places[name]
        if self._open is None or self._open[0] != place.file:
            self.close()
            self._open = (place.file, place.file.open("rb", buffering=0))
        file = self._open[1]
        file.seek(place.start + start)
        while buffer:
            count = file.readinto(buffer)  # type: ignore[attr-defined]
            if not count:
                raise UserError(f"{place.file} was cut off while it was read")
            buffer = buffer[count:]

    def close(self) -> None:
        """Close the file that was read last."""
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def _weight_files(self) -> list[Path]:
        if (self.folder / SINGLE_FILE).is_file():
            # as transformers does it; beside it may be the same weights under the names of other programs,
            # or an index and files that were there before
            return [self.folder / SINGLE_FILE]
        index_file = self.folder / INDEX_FILE
        if index_file.is_file():
            try:
                names = set(orjson.loads(index_file.read_bytes())["weight_map"].values())
                return sorted(self.folder / name for name in names)
            except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
                raise UserError(f"{index_file} is no index of safetensors files") from None
        if files := sorted(self.folder.glob("*.safetensors")):
            return files
        others = sorted(p.name for p in self.folder.glob("*") if p.name.endswith(_OTHER_WEIGHTS))
        hint = f", only {others[0]}: load and save it with transformers" if others else ""
        raise UserError(f"{self.folder} holds no *.safetensors files{hint}")

    def _read_header(self, file: Path) -> None:
        try:
            size = file.stat().st_size
            with file.open("rb") as stream:
                length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
                if length > min(_LONGEST_HEADER, size):
                    raise ValueError
                header = orjson.loads(stream.read(length))
            data_start = _LENGTH_BYTES + length
            header.pop("__metadata__", None)
            for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
                kind = TensorKind(entry["dtype"], tuple(entry["shape"]))
                start, stop = entry["data_offsets"]
                if kind.dtype not in ITEM_SIZES:
                    raise UserError(f"{file}: tensor {name} has the unknown type {kind.dtype}")
                if stop - start != kind.nbytes or data_start + stop > size:
                    raise ValueError
                self.kinds[name] = kind
                self._places[name] = Place(file, data_start + start)
        except OSError as error:
            raise UserError(f"cannot read {file}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{file} is damaged or was not written to its end") from None


def is_weight_file(name: str) -> bool:
    """Whether a file of a model folder holds weights, or says which file holds which."""
    return name.endswith((".safetensors", *_OTHER_WEIGHTS)) or name == INDEX_FILE


def write_tensors(
    folder: Path,
    kinds: Mapping[str, TensorKind],
    pieces: Callable[[str], Iterator[memoryview]],
    shard_bytes: int,
) -> None:
    """Write tensors to a folder, in several files with an index if one would grow over `shard_bytes`.

    Args:
        folder: An existing folder.
        kinds: All tensors, in the order in which they are asked for.
        pieces: Yields the bytes of a tensor.
        shard_bytes: Largest size of a file, unless a single tensor is larger.
    """
    files = split(kinds, shard_bytes)
    for file, names in files.items():
        _write_file(folder / file, {name: kinds[name] for name in names}, pieces)
    if len(files) > 1:
        write_file(folder / INDEX_FILE, index(kinds, files))


def index(kinds: Mapping[str, TensorKind], files: Mapping[str, Sequence[str]]) -> bytes:
    """Return the index that says in which of several files each tensor lies."""
    weight_map = {name: file for file, names in files.items() for name in names}
    total = sum(kind.nbytes for kind in kinds.values())
    content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    return orjson.dumps(content, option=orjson.OPT_INDENT_2)


def split(kinds: Mapping[str, TensorKind], shard_bytes: int) -> dict[str, list[str]]:
    """Return names of files, and of the tensors of each in the order in which they are to lie there."""
    shards = _shards(kinds, shard_bytes)
    if len(shards) == 1:
        return {SINGLE_FILE: shards[0]}
    return {
        f"model-{number:05d}-of-{len(shards):05d}.safetensors": names
        for number, names in enumerate(shards, start=1)
    }


def _shards(kinds: Mapping[str, TensorKind], shard_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for name, kind in kinds.items():
        if shards[-1] and size + kind.nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += kind.nbytes
    # wide types first, so that every tensor is aligned to its own type
    return [sorted(names, key=lambda name: -ITEM_SIZES[kinds[name].dtype]) for names in shards]


def header(kinds: Mapping[str, TensorKind]) -> bytes:
    """Return what a file of these tensors, in this order, begins with."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, kind in kinds.items():
        stop = start + kind.nbytes
        entries[name] = {"dtype": kind.dtype, "shape": kind.shape, "data_offsets": [start, stop]}
        start = stop
    text = orjson.dumps(entries)
    text += b" " * (-len(text) % _LENGTH_BYTES)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def _write_file(
    path: Path, kinds: Mapping[str, TensorKind], pieces: Callable[[str], Iterator[memoryview]]
) -> None:
    with path.open("wb", buffering=0) as file:
        file.write(header(kinds))
        for name in kinds:
            _write_all(file, pieces(name))
        os.fsync(file.fileno())


def _write_all(file: BinaryIO, pieces: Iterable[memoryview]) -> None:
    for piece in pieces:
        left = piece
        while left:
            left = left[file.write(left) :]


def differences(folders: Sequence[SafetensorsFolder]) -> list[str]:
    """Return in what the tensors of several folders differ from those of the first; a few examples."""
    first, *others = folders
    problems = []
    for other in others:
        where = f"{other.folder} against {first.folder}"
        for name in first.kinds.keys() - other.kinds.keys():
            problems.append(f"{where}: tensor {name} is missing")
        for name in other.kinds.keys() - first.kinds.keys():
            problems.append(f"{where}: tensor {name} is not in the other")
        for name in first.kinds.keys() & other.kinds.keys():
            mine, theirs = first.kinds[name], other.kinds[name]
            if mine != theirs:
                is_now = f"{theirs.dtype} {list(theirs.shape)} instead of {mine.dtype} {list(mine.shape)}"
                problems.append(f"{where}: tensor {name} is {is_now}")
    return sorted(problems)
