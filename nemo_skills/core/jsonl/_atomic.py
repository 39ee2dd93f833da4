"""Files that appear complete or not at all, and disk errors in plain words."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from nemo_skills.core.errors import UserError

_BUFFER = 1 << 20
_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file grew over the largest size allowed here",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "the file system is read-only",
    errno.ENOTDIR: "a part of the path is not a folder",
    errno.EEXIST: "a part of the path is not a folder",
    errno.EISDIR: "it is a folder",
    errno.EIO: "the disk reported an error",
}


@contextmanager
def disk_errors(path: Path, hint: str = "") -> Iterator[None]:
    """Turn an `OSError` on `path` into a `UserError` that says what is wrong; `hint` says what to do."""
    try:
        yield
    except OSError as error:
        reason = _REASONS.get(error.errno or 0, error.strerror or str(error))
        raise UserError(f"Cannot write {path}: {reason}.{' ' + hint if hint else ''}", exit_code=1) from error


@contextmanager
def atomic_output(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary neighbour of `path` that takes its place, durably, when the block succeeds."""
    temporary = path.with_name(f"{path.name}-tmp")
    try:
        with temporary.open("wb", buffering=_BUFFER) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def check_space(path: Path, needed: int) -> None:
    """Notice now, rather than after hours, that a disk has no room for so many bytes.

    Raises:
        UserError: it has not.
    """
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    free = shutil.disk_usage(folder).free
    if free < needed:
        sizes = f"{needed / 1e6:,.1f} MB are needed, {free / 1e6:,.1f} MB are free"
        raise UserError(f"Cannot write {path}: the disk is full: {sizes}.", exit_code=1)


def write_file(path: Path, data: bytes) -> None:
    """Write a small file atomically."""
    with atomic_output(path) as file:
        file.write(data)


def sync_folder(folder: Path) -> None:
    """Make renames and removals inside `folder` durable, where the file system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
