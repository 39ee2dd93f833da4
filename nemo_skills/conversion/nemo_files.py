"""The files of a NeMo checkpoint by name, in a folder or inside a tar."""

import gzip
import os
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nemo_skills.core.errors import UserError
from nemo_skills.core.jsonl import check_space, disk_errors

MODEL_CONFIG = "model_config.yaml"
HF_FOLDER = "hf"
"""Where ours keep the files of the Hugging Face model that are neither weights nor tokenizer."""
_WEIGHT_FOLDERS = ("model_weights", "weights", "")
_GZIP = b"\x1f\x8b"
_BLOCK = 1 << 20


@dataclass(frozen=True)
class FileSlice:
    """A file that is a part of another one, or all of it."""

    path: Path
    start: int
    size: int


class CheckpointFiles:
    """The files of a checkpoint; names are relative, with slashes."""

    def __init__(self, where: Path, slices: dict[str, FileSlice]) -> None:
        self.where = where
        self.slices = slices
        self.weights = self._weights_folder()

    def read(self, name: str) -> bytes:
        """Return the contents of a small file."""
        piece = self.slices[name]
        with piece.path.open("rb") as file:
            file.seek(piece.start)
            return file.read(piece.size)

    def find(self, *names: str) -> str | None:
        """Return the first of some names that is there."""
        return next((name for name in names if name in self.slices), None)

    def _weights_folder(self) -> str:
        for folder in _WEIGHT_FOLDERS:
            prefix = f"{folder}/" if folder else ""
            if f"{prefix}.metadata" in self.slices:
                return prefix
        names = self.slices
        if any(name.endswith((".zarray", "/.zmetadata")) for name in names):
            raise UserError(f"{self.where} has weights in the zarr format, only torch_dist can be read")
        if any(name.endswith("model_weights.ckpt") for name in names):
            raise UserError(
                f"{self.where} is older than Megatron-Core's formats; NeMo's own scripts convert it"
            )
        raise UserError(f"{self.where} holds no model_weights/.metadata: no complete NeMo checkpoint")


@contextmanager
def open_checkpoint(path: Path, scratch: Path) -> Iterator[CheckpointFiles]:
    """Open a folder or a tar.

    Args:
        path: The checkpoint.
        scratch: A folder in which a compressed tar may be unpacked for the time being.

    Raises:
        UserError: there is none, or it is damaged.
    """
    if path.is_dir():
        yield CheckpointFiles(path, _in_folder(path))
    elif not path.is_file():
        raise UserError(f"there is no checkpoint {path}")
    elif path.open("rb").read(2) == _GZIP:
        with _unpacked(path, scratch) as folder:
            yield CheckpointFiles(path, _in_folder(folder))
    else:
        yield CheckpointFiles(path, _in_tar(path))


def _in_folder(folder: Path) -> dict[str, FileSlice]:
    files = files_below(folder)
    return {path.relative_to(folder).as_posix(): FileSlice(path, 0, path.stat().st_size) for path in files}


def files_below(folder: Path) -> list[Path]:
    """Return all files in a folder and in those below it, which may be links."""
    files: list[Path] = []
    seen: set[str] = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        folders.sort()
        real = os.path.realpath(root)
        if real in seen:  # links may lead in a circle
            folders.clear()
            continue
        seen.add(real)
        files += (path for path in (Path(root) / name for name in names) if path.is_file())
    return sorted(files)


def _in_tar(path: Path) -> dict[str, FileSlice]:
    size = path.stat().st_size
    slices = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.isfile():
                    slices[os.path.normpath(member.name)] = FileSlice(path, member.offset_data, member.size)
                if member.offset_data + member.size > size:
                    raise UserError(f"{path} was cut off: {member.name} is not whole")
    except tarfile.TarError as error:
        raise UserError(f"{path} is no tar file that can be read: {error}") from None
    return slices


@contextmanager
def _unpacked(path: Path, scratch: Path) -> Iterator[Path]:
    """Unpack a compressed tar: its weights cannot be read where they are."""
    with disk_errors(scratch):
        scratch.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f"{path.name}.unpacked.", dir=scratch))
    try:
        with disk_errors(folder):
            _unpack(path, folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _unpack(path: Path, folder: Path) -> None:
    try:
        with tarfile.open(path, "r:gz") as tar:
            for member in tar:
                check_space(folder / "x", member.size)
                tar.extract(member, folder, filter="data")
            # the checksum follows the last member, where tarfile does not read any more
            while tar.fileobj is not None and tar.fileobj.read(_BLOCK):
                pass
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path} is damaged: {error}") from None
