"""The mean of several checkpoints, a piece of one tensor at a time."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import orjson

from nemo_skills.conversion.hf_copy import hf_copy
from nemo_skills.core.errors import UserError
from nemo_skills.core.jsonl import check_space, disk_errors, open_locked, write_file
from nemo_skills.core.log import get_logger
from nemo_skills.core.safetensors import (
    ITEM_SIZES,
    SafetensorsFolder,
    differences,
    write_tensors,
)
from nemo_skills.training.checkpoint_folders import Checkpoint, is_nemo_folder

if TYPE_CHECKING:
    import torch

LOG = get_logger(__name__)

SOURCES_FILE = "averaged_from.json"
"""In the result: the checkpoints that it is the mean of."""
_OF_OTHERS = ("converted_from.json",)
"""What would tell of the model that training began with."""
_PIECE = 1 << 20
"""Numbers per piece: pieces of all inputs fit into a processor's cache."""
_SHOWN = 5


class Averaged(NamedTuple):
    """What was done."""

    nbytes: int
    """Size of the result; 0 when it was there already."""


def average(
    checkpoints: Sequence[Checkpoint], output: Path, shard_bytes: int, hf_model_name: str | None = None
) -> Averaged:
    """Write the mean of checkpoints to a folder, which appears complete or not at all.

    Config and tokenizer are those of the last checkpoint, or of NeMo checkpoints without them those of
    `hf_model_name`. A result of the same checkpoints is left as it is.

    Raises:
        UserError: checkpoints differ in names, shapes or types; one is damaged; the disk is too full; or the
            output folder holds something else.
    """
    folders = [open_checkpoint(checkpoint.model, hf_model_name) for checkpoint in checkpoints]
    sources = _describe(checkpoints, folders)
    if is_mean_of(output, sources):
        LOG.info("%s is the mean of these checkpoints already", output)
        return Averaged(0)
    if problems := differences(folders):
        more = f"\nand {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise UserError(
            "these checkpoints are not of the same model:\n" + "\n".join(problems[:_SHOWN]) + more
        )
    check_space(output, folders[0].nbytes)
    with disk_errors(output):
        _write(folders, output, shard_bytes, sources)
    return Averaged(folders[0].nbytes)


def open_checkpoint(folder: Path, hf_model_name: str | None = None) -> SafetensorsFolder:
    """Return the tensors of a checkpoint; of one in NeMo's format, those of a converted copy beside it."""
    return SafetensorsFolder(hf_copy(folder, hf_model_name) if is_nemo_folder(folder) else folder)


def _write(
    folders: Sequence[SafetensorsFolder], output: Path, shard_bytes: int, sources: dict[str, object]
) -> None:
    temporary = output.with_name(f"{output.name}.unfinished")
    temporary.mkdir(parents=True, exist_ok=True)
    lock = temporary / "lock"
    with open(open_locked(lock), "rb"):  # noqa: PTH123  # another process may be at it
        for left in temporary.iterdir():
            if left != lock:
                left.unlink()
        write_tensors(temporary, folders[0].kinds, lambda name: mean_pieces(folders, name), shard_bytes)
        for file in folders[-1].other_files:
            if file.name not in _OF_OTHERS:
                shutil.copyfile(file, temporary / file.name)
        write_file(temporary / SOURCES_FILE, orjson.dumps(sources, option=orjson.OPT_INDENT_2))
        if output.exists():
            shutil.rmtree(output)
        lock.unlink()
        temporary.rename(output)


def mean_pieces(folders: Sequence[SafetensorsFolder], name: str) -> Iterator[memoryview]:
    """Yield the bytes of the mean of one tensor; a piece is valid until the next one is asked for."""
    import torch

    kind = folders[0].kinds[name]
    dtype = _torch_type(kind.dtype)
    size = ITEM_SIZES[kind.dtype]
    total = torch.empty(_PIECE, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    raw = bytearray(_PIECE * size)
    for start in range(0, kind.nbytes, len(raw)):
        view = memoryview(raw)[: min(len(raw), kind.nbytes - start)]
        part = torch.frombuffer(raw, dtype=dtype, count=len(view) // size)
        if dtype.is_floating_point:
            _average_piece(folders, name, start, (view, part, total[: len(part)]))
        else:
            _require_equal(folders, name, start, view)
        yield view


def _average_piece(
    folders: Sequence[SafetensorsFolder],
    name: str,
    start: int,
    buffers: "tuple[memoryview, torch.Tensor, torch.Tensor]",
) -> None:
    view, part, total = buffers
    for index, folder in enumerate(folders):
        folder.read_into(name, start, view)
        # to begin with a zero would lose the sign of others
        total.copy_(part) if index == 0 else total.add_(part.to(total.dtype))
    if len(folders) > 1:
        total.div_(len(folders))
    if not total.sum().isfinite() and not total.isfinite().all():
        raise UserError(f"the mean of tensor {name} has values that are not finite: is a checkpoint broken?")
    part.copy_(total)


def _require_equal(folders: Sequence[SafetensorsFolder], name: str, start: int, view: memoryview) -> None:
    """Read a tensor of whole numbers, such as a buffer, of which a mean makes no sense."""
    folders[0].read_into(name, start, view)
    for other in folders[1:]:
        theirs = memoryview(bytearray(len(view)))
        other.read_into(name, start, theirs)
        if theirs != view:
            raise UserError(
                f"tensor {name} holds whole numbers, and they differ between {folders[0].folder}"
                f" and {other.folder}"
            )


def _torch_type(name: str) -> "torch.dtype":
    import torch

    special = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu"}
    plain = {"F": "float", "BF": "bfloat", "I": "int", "U": "uint", "BOOL": "bool"}
    letters = name.rstrip("0123456789")
    dtype = getattr(torch, special.get(name) or f"{plain[letters]}{name.removeprefix(letters)}")
    assert isinstance(dtype, torch.dtype)
    return dtype


def _describe(checkpoints: Sequence[Checkpoint], folders: Sequence[SafetensorsFolder]) -> dict[str, object]:
    """Return what tells these checkpoints from others, in the form of JSON."""
    entries = []
    for checkpoint, folder in zip(checkpoints, folders, strict=True):
        stats = [(file.name, file.stat()) for file in folder.weight_files]
        files = [{"name": name, "size": stat.st_size, "time_ns": stat.st_mtime_ns} for name, stat in stats]
        entries.append({"step": checkpoint.step, "folder": str(folder.folder.absolute()), "files": files})
    return {"checkpoints": entries}


def is_mean_of(output: Path, sources: dict[str, object]) -> bool:
    """Whether a folder is the mean of these checkpoints.

    Raises:
        UserError: it holds something that is no mean.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return False
    try:
        return bool(orjson.loads((output / SOURCES_FILE).read_bytes()) == sources)
    except (OSError, orjson.JSONDecodeError):
        raise UserError(f"{output} holds something else than a mean of checkpoints; move it away") from None
