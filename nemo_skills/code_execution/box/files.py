"""What a box sees of the file system: system libraries, the interpreter, and a small folder to write to."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from nemo_skills.code_execution.box import kernel
from nemo_skills.code_execution.box.limits import BoxOrder

SCRATCH = "/tmp"  # noqa: S108  # of the box
_OLD = "/old"
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_COPIED = ("/etc/ld.so.cache", "/etc/localtime", "/etc/mime.types", "/etc/protocols", "/etc/services")
_DEVICES = ("null", "zero", "full", "random", "urandom")
_LINKS = {"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"}
_FLAGS = {"nosuid": kernel.NOSUID, "nodev": kernel.NODEV, "noexec": kernel.NOEXEC}
_OWN_FLAGS = kernel.NOSUID | kernel.NODEV
_INODES = 20_000


def interpreter_folders() -> tuple[str, ...]:
    """Return where this interpreter and its packages lie."""
    prefixes = (sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix)
    return tuple(dict.fromkeys(os.path.realpath(prefix) for prefix in prefixes))


def build_root(order: BoxOrder, uid: int) -> None:
    """Replace this mount namespace's root; what is not put into the new one is out of reach.

    Args:
        order: says what to show and how much may be written.
        uid: the user that programs run as.
    """
    kernel.mount("none", "/", None, kernel.REC | kernel.PRIVATE)
    kernel.mount("tmpfs", SCRATCH, "tmpfs", _OWN_FLAGS, "mode=755,size=16m")
    os.mkdir(SCRATCH + _OLD)  # noqa: PTH102
    kernel.pivot_root(SCRATCH, SCRATCH + _OLD)
    os.chdir("/")
    # first, as the interpreter may lie below it
    os.mkdir(SCRATCH)  # noqa: PTH102
    _mount_scratch(order)
    _add_folders((*_SYSTEM, *interpreter_folders(), *order.visible))
    _add_devices()
    _add_settings(uid)
    os.mkdir("/proc", 0o555)  # noqa: PTH102
    kernel.mount("proc", "/proc", "proc", _OWN_FLAGS | kernel.NOEXEC)
    kernel.detach(_OLD)
    os.rmdir(_OLD)  # noqa: PTH106
    kernel.mount("none", "/", None, kernel.REMOUNT | kernel.BIND | kernel.RDONLY | _OWN_FLAGS)
    os.chdir(SCRATCH)


def _add_folders(folders: Iterable[str]) -> None:
    added: list[Path] = []
    for folder in map(Path, folders):
        source = Path(f"{_OLD}{folder}")
        if folder == Path("/") or any(folder.is_relative_to(above) for above in added):
            continue
        if source.is_symlink():
            folder.symlink_to(os.readlink(source))  # noqa: PTH115
        elif source.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            kernel.mount(str(source), str(folder), None, kernel.BIND | kernel.REC)
            _make_read_only(folder)
            added.append(folder)


def _make_read_only(folder: Path) -> None:
    """Make a mount and those below it read-only; flags that they have may not be taken from them."""
    for target, options in _mounts():
        if target.is_relative_to(folder):
            kept = sum(flag for name, flag in _FLAGS.items() if name in options)
            flags = kernel.REMOUNT | kernel.BIND | kernel.RDONLY | kept | _OWN_FLAGS
            kernel.mount("none", str(target), None, flags)


def _mounts() -> list[tuple[Path, list[str]]]:
    lines = Path(f"{_OLD}/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    entries = (line.split(" ") for line in lines)
    return [(Path(_unescaped(entry[4])), entry[5].split(",")) for entry in entries]


def _unescaped(path: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), path)


def _add_devices() -> None:
    os.mkdir("/dev")  # noqa: PTH102
    for name in _DEVICES:
        Path(f"/dev/{name}").touch()
        kernel.mount(f"{_OLD}/dev/{name}", f"/dev/{name}", None, kernel.BIND)
    for name, target in _LINKS.items():
        Path(f"/dev/{name}").symlink_to(target)
    Path("/dev/shm").symlink_to(f"{SCRATCH}/.shm")  # noqa: S108


def _add_settings(uid: int) -> None:
    os.mkdir("/etc")  # noqa: PTH102
    for path in _COPIED:
        if Path(_OLD + path).is_file():
            shutil.copyfile(_OLD + path, path)
    Path("/etc/passwd").write_text(f"sandbox:x:{uid}:{uid}::{SCRATCH}:/bin/sh\n")
    Path("/etc/hosts").write_text("127.0.0.1 localhost\n")


def empty_scratch(order: BoxOrder) -> None:
    """Forget what programs have written."""
    os.chdir("/")
    if order.isolated:
        kernel.detach(SCRATCH)
        _mount_scratch(order)
        os.chdir(SCRATCH)


def _mount_scratch(order: BoxOrder) -> None:
    size = f"size={order.limits.disk_mb}m,nr_inodes={_INODES}"
    kernel.mount("tmpfs", SCRATCH, "tmpfs", _OWN_FLAGS, f"mode=1777,{size}")
    shared = f"{SCRATCH}/.shm"
    os.mkdir(shared)  # noqa: PTH102
    os.chmod(shared, 0o1777)  # noqa: PTH101, S103
