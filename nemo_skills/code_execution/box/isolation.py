"""Enters a box and gives up every right that a program could use against the machine."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
from pathlib import Path

from nemo_skills.code_execution.box import kernel, seccomp
from nemo_skills.code_execution.box.limits import BoxOrder, Limits

_FIRST_UID = 1_900_000_000
"""User ids from here on belong to boxes, if the server is root; no account has them."""
_HOSTNAME = "sandbox"
_OTHERS = kernel.NEWNS | kernel.NEWPID | kernel.NEWNET | kernel.NEWIPC | kernel.NEWUTS
_MEBIBYTE = 1 << 20
_SPARE_ADDRESSES_MB = 1024
_PER_NAMESPACE_SINCE = (5, 14)
_NICENESS = 5


def enter_namespaces() -> None:
    """Leave the machine's namespaces; children are in a process namespace of their own.

    Raises:
        OSError: the kernel, or whoever runs this container, does not allow it.
    """
    if not seccomp.supported():
        raise OSError(f"system call filter: machine type {os.uname().machine} is unknown")
    if os.geteuid() == 0:
        with contextlib.suppress(OSError):
            kernel.unshare(_OTHERS)
            return
    uid, gid = os.geteuid(), os.getegid()
    kernel.unshare(kernel.NEWUSER | _OTHERS)
    own = Path("/proc/self")
    (own / "setgroups").write_text("deny")
    (own / "uid_map").write_text(f"{uid} {uid} 1")
    (own / "gid_map").write_text(f"{gid} {gid} 1")


def settle(order: BoxOrder) -> None:
    """Make the keeper ready for bad company."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # which process 1 is immune to
    if order.isolated:
        socket.sethostname(_HOSTNAME)
    kernel.set_dumpable(False)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("900")


def become_program(order: BoxOrder) -> None:
    """Give up all rights, for good; what runs afterwards is not trusted."""
    os.setsid()
    _limit(order.limits)
    os.nice(_NICENESS)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    if order.isolated:
        with contextlib.suppress(OSError):
            kernel.drop_capability_bounds()
        if (uid := program_uid(order)) != os.geteuid():
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
        kernel.drop_capabilities()
        seccomp.forbid()
    kernel.set_dumpable(True)  # it may look at itself


def program_uid(order: BoxOrder) -> int:
    """Return the user that programs of a box run as."""
    if order.isolated and os.geteuid() == 0 and _owns_other_users():
        return _FIRST_UID + order.slot
    return os.geteuid()


def _owns_other_users() -> bool:
    """Tell whether user ids beyond our own exist here: in a user namespace of ours they do not."""
    ranges = [line.split() for line in Path("/proc/self/uid_map").read_text().splitlines()]
    return any(int(first) <= _FIRST_UID < int(first) + int(count) for first, _, count in ranges)


def _limit(limits: Limits) -> None:
    memory = (limits.memory_mb + _SPARE_ADDRESSES_MB) * _MEBIBYTE
    disk = limits.disk_mb * _MEBIBYTE
    bounds = {
        resource.RLIMIT_AS: memory,
        resource.RLIMIT_FSIZE: disk,
        resource.RLIMIT_NOFILE: limits.open_files,
        resource.RLIMIT_CORE: 1,  # 0 would not keep the machine's crash reporter from being started
        resource.RLIMIT_MEMLOCK: 1 << 16,
    }
    if _counts_by_box():
        bounds[resource.RLIMIT_NPROC] = limits.processes
    for which, wanted in bounds.items():
        hard = resource.getrlimit(which)[1]
        value = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(which, (value, value))


def _counts_by_box() -> bool:
    """Tell whether the kernel counts our processes apart from all others of the user who runs the server."""
    if os.geteuid() == 0 and _owns_other_users():
        return True
    release = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])
    return release >= _PER_NAMESPACE_SINCE
