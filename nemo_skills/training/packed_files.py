"""Packed training data on disk: three `.npy` files that belong together, written and read part by part.

`<prefix>.input_ids.npy` (int32, packs x width, -1 behind the end), `<prefix>.loss_mask.npy` (bool, the same
shape, true behind the end) and `<prefix>.seq_start_id.npy` (int32, packs x most sequences, -1 behind the
end): where in the row each sequence begins. A sequence has one token more than the model is given at once:
its last is no input, and its first is nothing the model should say. The mask stands with the inputs: it is
true where the *next* token is learned, and so always false at the last token of a sequence.

`<prefix>.json` says how the files were made. It and `input_ids` appear last: who finds these finds the rest.
"""

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson

from nemo_skills.core.errors import UserError
from nemo_skills.core.jsonl import check_space, disk_errors, open_locked, write_file
from nemo_skills.training.packing_info import PackingInfo

Array = npt.NDArray[Any]
PADDING = -1
_DTYPES = {"input_ids": np.dtype(np.int32), "loss_mask": np.dtype(bool), "seq_start_id": np.dtype(np.int32)}
"""In the order of the parts below."""
_BUFFER = 1 << 20


class PackedSequence(NamedTuple):
    """One sequence of a pack."""

    input_ids: npt.NDArray[np.int32]
    loss_mask: npt.NDArray[np.bool_]
    """Whether the token at this place is learned, as in `tokenise.Example`."""


class PackShape(NamedTuple):
    """How large the arrays are."""

    packs: int
    width: int
    """Places of a row."""
    sequences: int
    """Most sequences of a row."""

    @property
    def nbytes(self) -> int:
        """Bytes of all three arrays."""
        return self.packs * (self.width * (4 + 1) + self.sequences * 4)


class PackRows(NamedTuple):
    """Neighbouring rows of the arrays."""

    input_ids: Array
    loss_mask: Array
    seq_start_id: Array


def packed_prefix(path: Path | str) -> Path:
    """Return what the three files' names begin with, given that, the same and `.npy`, or one of the files."""
    path = Path(path).expanduser()
    for ending in (*(f".{part}.npy" for part in _DTYPES), ".npy", ".json"):
        if path.name.endswith(ending):
            return path.with_name(path.name.removesuffix(ending))
    return path


def part_path(prefix: Path, part: str) -> Path:
    """Return the path of one of the arrays."""
    return prefix.with_name(f"{prefix.name}.{part}.npy")


def about_path(prefix: Path) -> Path:
    """Return the path of the file that says how the arrays were made."""
    return prefix.with_name(f"{prefix.name}.json")


class PackedReader(Sequence[tuple[PackedSequence, ...]]):
    """The packs of a file, memory-mapped: those that are asked for are read.

    Raises:
        UserError: a file is missing or broken, or they do not belong together.
    """

    def __init__(self, path: Path | str) -> None:
        """Open the files meant by `path`, see `packed_prefix`."""
        self.prefix = packed_prefix(path)
        self.arrays = PackRows(*(_open(part_path(self.prefix, part), part) for part in _DTYPES))
        ids, mask, starts = self.arrays
        if ids.shape != mask.shape or len(starts) != len(ids):
            raise UserError(
                f"{self.prefix}.*.npy do not belong together: input_ids is {_by(ids)}, loss_mask {_by(mask)},"
                f" seq_start_id {_by(starts)}."
            )
        self.shape = PackShape(len(ids), ids.shape[1], starts.shape[1])

    def __len__(self) -> int:
        return len(self.arrays.input_ids)

    def __getitem__(self, index: Any) -> Any:
        """Return the sequences of one pack."""
        ids, mask, starts = (np.asarray(array[index]) for array in self.arrays)
        bounds = self._bounds(int(index), ids, starts)
        found = []
        for start, end in itertools.pairwise(bounds):
            learned = np.concatenate(([False], mask[start : end - 1]))
            found.append(PackedSequence(np.array(ids[start:end]), learned))
        return tuple(found)

    def _bounds(self, index: int, ids: Array, starts: Array) -> list[int]:
        behind = np.flatnonzero(ids == PADDING)
        end = int(behind[0]) if len(behind) else len(ids)
        none = np.flatnonzero(starts == PADDING)
        bounds = [*map(int, starts[: none[0]] if len(none) else starts), end]
        if bounds[0] != 0 or any(b <= a for a, b in itertools.pairwise(bounds)):
            raise UserError(f"{part_path(self.prefix, 'seq_start_id')}: row {index} is broken: {bounds}.")
        return bounds

    @property
    def about(self) -> dict[str, Any] | None:
        """How the files were made; None for files of another program."""
        path = about_path(self.prefix)
        try:
            found = orjson.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, orjson.JSONDecodeError) as error:
            raise UserError(f"Cannot read {path}: {error}") from None
        if not isinstance(found, dict):
            raise UserError(f"{path} is not a JSON object.")
        return found

    @property
    def info(self) -> PackingInfo | None:
        """The same, checked and typed."""
        about = self.about
        return None if about is None else PackingInfo.from_json(about, about_path(self.prefix))

    def blocks(self, rows: int) -> Iterator[PackRows]:
        """Yield all rows, so many at a time."""
        for start in range(0, len(self), rows):
            yield PackRows(*(array[start : start + rows] for array in self.arrays))


class PackedWriter:
    """Takes the rows of a file from first to last; see `write_packed`."""

    def __init__(self, shape: PackShape, files: Sequence[BinaryIO]) -> None:
        self._shape = shape
        self._files = files
        self._written = 0
        widths = (shape.width, shape.width, shape.sequences)
        for file, dtype, width in zip(files, _DTYPES.values(), widths, strict=True):
            header = {"descr": dtype.str, "fortran_order": False, "shape": (shape.packs, width)}
            np.lib.format.write_array_header_1_0(file, header)

    def append(self, rows: PackRows) -> None:
        """Write rows, which may be narrower than the file's; the rest is padding."""
        count = len(rows.input_ids)
        widths = (self._shape.width, self._shape.width, self._shape.sequences)
        for file, given, width, fill in zip(self._files, rows, widths, (PADDING, True, PADDING), strict=True):
            assert len(given) == count and given.shape[1] <= width
            if given.shape[1] < width:
                wide = np.full((count, width), fill, given.dtype)
                wide[:, : given.shape[1]] = given
                given = wide  # noqa: PLW2901
            file.write(np.ascontiguousarray(given).data.cast("B"))
        self._written += count

    def check_complete(self) -> None:
        """All rows must have been written."""
        assert self._written == self._shape.packs, (
            f"{self._written} of {self._shape.packs} packs were written"
        )


@contextmanager
def write_packed(prefix: Path, shape: PackShape, about: Mapping[str, Any] | None) -> Iterator[PackedWriter]:
    """Open a writer; the files appear, complete, when the block succeeds, and not at all otherwise.

    Args:
        prefix: what the files' names begin with.
        shape: how large the arrays will be.
        about: how they were made, if that is known.

    Raises:
        UserError: the disk is full or cannot be written to, or another process writes the same files.
    """
    parts = [part_path(prefix, part) for part in _DTYPES]
    temporary = [path.with_name(f"{path.name}-tmp") for path in parts]
    lock = prefix.with_name(f"{prefix.name}.lock")
    with disk_errors(prefix, "Nothing was changed."), ExitStack() as stack:
        prefix.parent.mkdir(parents=True, exist_ok=True)
        check_space(prefix, shape.nbytes)
        stack.callback(os.close, open_locked(lock))
        stack.callback(lock.unlink, missing_ok=True)
        try:
            files = [stack.enter_context(path.open("wb", buffering=_BUFFER)) for path in temporary]
            writer = PackedWriter(shape, files)
            yield writer
            writer.check_complete()
            for file in files:
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            for path in temporary:
                with suppress(OSError):
                    path.unlink(missing_ok=True)
            raise
        # whatever stood here under these names goes first, so that old and new are never taken for a whole
        for path in (parts[0], about_path(prefix)):
            path.unlink(missing_ok=True)
        for path, final in reversed(list(zip(temporary, parts, strict=True))):
            path.replace(final)
        if about is not None:
            write_file(about_path(prefix), orjson.dumps(about, option=orjson.OPT_INDENT_2))


def _open(path: Path, part: str) -> Array:
    try:
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise UserError(_missing(path)) from None
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} is no whole .npy file: {error}") from None
    if array.dtype != _DTYPES[part] or array.ndim != 2:
        expected = f"a table of {_DTYPES[part]}"
        raise UserError(f"{path}: expected {expected}, found shape {_by(array)} of {array.dtype}.")
    return array


def _missing(path: Path) -> str:
    there = sorted(path.parent.glob("*.input_ids.npy")) if path.parent.is_dir() else []
    names = ", ".join(p.name.removesuffix(".input_ids.npy") + ".npy" for p in there[:5])
    hint = f" Packed files there: {names}." if names else ""
    return f"{path} does not exist; packed data is three files that prepare_packed_ft_dataset makes.{hint}"


def _by(array: Array) -> str:
    return " x ".join(map(str, array.shape))
