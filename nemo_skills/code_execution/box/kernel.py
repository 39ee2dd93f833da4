"""Linux system calls that Python 3.11 lacks."""

from __future__ import annotations

import ctypes
import os
import re
import signal
from pathlib import Path

NEWNS, NEWCGROUP, NEWUTS, NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
NEWUSER, NEWPID, NEWNET = 0x10000000, 0x20000000, 0x40000000

RDONLY, NOSUID, NODEV, NOEXEC = 1, 2, 4, 8
REMOUNT, BIND, REC, PRIVATE = 32, 4096, 16384, 1 << 18
_DETACH = 2
_PDEATHSIG, _DUMPABLE, _CAPBSET_DROP, _NO_NEW_PRIVS, _SUBREAPER, _CAP_AMBIENT = 1, 4, 24, 38, 36, 47
_AMBIENT_CLEAR_ALL = 4
_CAPABILITY_VERSION_3 = 0x20080522
_LAST_CAPABILITY = 63
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")


def unshare(flags: int) -> None:
    """Give this process namespaces of its own."""
    _checked(_libc.unshare(flags), f"unshare({flags:#x})")


def mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    """Mount."""
    words = [None if word is None else os.fsencode(word) for word in (source, target, kind)]
    result = _libc.mount(*words, ctypes.c_ulong(flags), data.encode() or None)
    _checked(result, f"mount {kind or source} on {target}")


def detach(target: str) -> None:
    """Unmount, with all that is mounted below."""
    _checked(_libc.umount2(os.fsencode(target), _DETACH), f"unmount {target}")


def pivot_root(new: str, old: str) -> None:
    """Make a mount the root, and put the former root into a folder of it."""
    number = _PIVOT_ROOT[os.uname().machine]
    _checked(_libc.syscall(ctypes.c_long(number), os.fsencode(new), os.fsencode(old)), "pivot_root")


def prctl(option: int, first: int = 0) -> None:
    """Change a property of this process."""
    arguments = [ctypes.c_ulong(value) for value in (first, 0, 0, 0)]
    _checked(_libc.prctl(option, *arguments), f"prctl({option})")


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends; 0: a parent outside of this PID namespace."""
    prctl(_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def adopt_orphans() -> None:
    """Become the parent of all descendants whose parents end."""
    prctl(_SUBREAPER, 1)


def set_dumpable(dumpable: bool) -> None:
    """Decide whether processes of the same user may look into this one."""
    prctl(_DUMPABLE, int(dumpable))


def drop_capability_bounds() -> None:
    """Give up ever getting a capability back; needs CAP_SETPCAP."""
    for capability in range(_LAST_CAPABILITY + 1):
        try:
            prctl(_CAPBSET_DROP, capability)
        except OSError:  # beyond the last that this kernel has
            break


def drop_capabilities() -> None:
    """Give up all privileges for good, those of setuid programs included."""
    prctl(_CAP_AMBIENT, _AMBIENT_CLEAR_ALL)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    _checked(_libc.capset(header, (ctypes.c_uint32 * 6)()), "capset")
    prctl(_NO_NEW_PRIVS, 1)


def oom_kills() -> int | None:
    """Return how many processes of this machine the kernel has killed for want of memory; None: not known."""
    try:
        found = re.search(rb"^oom_kill (\d+)$", Path("/proc/vmstat").read_bytes(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) if found else None
