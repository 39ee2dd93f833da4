"""Run one daemon and take everything it ever started down with it.

A program of its own, standard library only: `python guard.py LOG [--private-mounts] -- ARGV...`.

Daemons fork helpers that outlive them (slurmstepd, containerd-shim, sshd sessions). The guard is their
"subreaper": whatever loses its parent below it becomes its child, so it can find all of them. It ends
them when it gets SIGTERM or when its standard input closes, which the kernel does for any death of the
process that started it. It prints the daemon's pid on its standard output, and owns orphans also after
the daemon itself has ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
CLONE_NEWNS = 0x00020000
MS_REC = 0x4000
MS_SLAVE = 1 << 19
GRACE_S = 5.0


def descendants(root: int) -> list[int]:
    """Every process below `root`, parents before children."""
    children: dict[int, list[int]] = {}
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            stat = Path(entry.path, "stat").read_text(errors="replace")
        except OSError:
            continue
        # The command name stands in parentheses and may itself hold blanks and parentheses.
        fields = stat.rpartition(")")[2].split()
        if fields[0] != "Z":
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found: list[int] = []
    todo = [root]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def _reap() -> None:
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _end_all(daemon: int) -> None:
    """Ask the daemon to stop, give it a moment, then kill whatever is left until nothing is."""
    me = os.getpid()
    if daemon in descendants(me):
        _signal(daemon, signal.SIGTERM)
        _signal(daemon, signal.SIGCONT)
    deadline = time.monotonic() + GRACE_S
    while daemon in descendants(me) and time.monotonic() < deadline:
        _reap()
        time.sleep(0.02)
    while left := descendants(me):
        for pid in left:
            _signal(pid, signal.SIGKILL)
        _reap()
        time.sleep(0.01)
    # What was killed is ours by now, and a zombie: leave none to init.
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)


def _enter_mount_namespace(libc: ctypes.CDLL) -> None:
    """The daemon's mounts are invisible outside and vanish with it; mounts made outside show inside."""
    if libc.unshare(CLONE_NEWNS) or libc.mount(b"none", b"/", None, MS_REC | MS_SLAVE, None):
        raise OSError(ctypes.get_errno(), "cannot enter a mount namespace of its own")


def main() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    split = sys.argv.index("--")
    log, options, argv = sys.argv[1], sys.argv[2:split], sys.argv[split + 1 :]
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    if "--private-mounts" in options:
        _enter_mount_namespace(libc)
    stop_read, stop_write = os.pipe()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: os.write(stop_write, b"x"))
    # Orphans are reaped at the wake-ups below; the daemon's own end must not interrupt anything.
    with Path(log).open("ab") as sink:
        child = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            start_new_session=True,
            preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0),  # noqa: PLW1509
        )
    os.write(1, f"{child.pid}\n".encode())
    while not select.select([0, stop_read], [], [], 0.5)[0]:
        _reap()
    _end_all(child.pid)


if __name__ == "__main__":
    main()
