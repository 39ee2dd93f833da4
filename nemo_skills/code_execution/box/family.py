"""All processes of a box but its keeper."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

from nemo_skills.code_execution.box import kernel
from nemo_skills.code_execution.box.files import SCRATCH
from nemo_skills.code_execution.box.limits import BoxOrder

_PROC = Path("/proc")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_MEBIBYTE = 1 << 20
_KILL_S = 10.0


class Family:
    """Ends, freezes and measures processes; they cannot leave."""

    def __init__(self, order: BoxOrder) -> None:
        self._isolated = order.isolated
        self.memory_limit = order.limits.memory_mb * _MEBIBYTE
        self._processes = order.limits.processes
        self.exit_codes: dict[int, int] = {}
        self.peak = 0
        """Most memory, in bytes, that one of the processes in `exit_codes` has used."""
        if not self._isolated:
            kernel.adopt_orphans()
        self.wakeup, writing = os.pipe()
        os.set_blocking(self.wakeup, False)
        os.set_blocking(writing, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)

    def forget(self) -> None:
        """Begin anew, with another program."""
        self.exit_codes.clear()
        self.peak = 0

    def ended(self, pid: int) -> bool:
        """Collect the processes that have ended, and tell whether this one is among them."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.wakeup, 1 << 12)
        self._reap()
        return pid in self.exit_codes

    def exit_code(self, pid: int, seconds: float) -> int | None:
        """Return how a process ended, if it ends within so many seconds."""
        deadline = time.monotonic() + seconds
        while not self.ended(pid) and time.monotonic() < deadline:
            time.sleep(0.001)
        return self.exit_codes.get(pid)

    def _reap(self) -> bool:
        """Tell whether children are left."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status, used = os.wait4(-1, os.WNOHANG)
                if not pid:
                    return True
                self.exit_codes[pid] = os.waitstatus_to_exitcode(status)
                self.peak = max(self.peak, used.ru_maxrss * 1024)
        return False

    def interrupt(self, pid: int) -> None:
        """Let a program know that it takes too long."""
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGINT)

    def kill(self) -> None:
        """End all; return when they are gone."""
        deadline = time.monotonic() + _KILL_S
        while time.monotonic() < deadline:
            self._signal(signal.SIGKILL)
            if not self._reap():
                return
            time.sleep(0.001)
        raise OSError("processes of a program do not end")

    def freeze(self) -> None:
        """Stop all until they are needed again."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let all go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, signum: int) -> None:
        if self._isolated:
            with contextlib.suppress(ProcessLookupError):
                os.kill(-1, signum)  # all of this namespace, at one instant
            return
        for pid in self._members():
            with contextlib.suppress(OSError):
                os.kill(pid, signum)

    def _members(self) -> list[int]:
        pids = [int(entry) for entry in os.listdir(_PROC) if entry.isdigit()]  # noqa: PTH208
        if self._isolated:
            return [pid for pid in pids if pid != os.getpid()]
        parents: dict[int, int] = {}
        for pid in pids:
            with contextlib.suppress(OSError, ValueError, IndexError):
                parents[pid] = int((_PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()[1])
        found = {os.getpid()}
        while more := {pid for pid, parent in parents.items() if parent in found} - found:
            found |= more
        return sorted(found - {os.getpid()})

    def excess(self) -> str:
        """Return what there is too much of: `processes`, `memory`, or nothing."""
        members = self._members()
        # the kernel's own limit comes first, but does not hold for root, as whom some containers run
        if len(members) > 2 * self._processes:
            return "processes"
        return "memory" if self._over_memory(members) else ""

    def _over_memory(self, members: list[int]) -> bool:
        """Tell whether processes and files together are over the limit."""
        files = 0
        if self._isolated:
            scratch = os.statvfs(SCRATCH)
            files = (scratch.f_blocks - scratch.f_bfree) * scratch.f_frsize
        if files + sum(map(_resident, members)) <= self.memory_limit:
            return False
        # pages that several processes share were counted several times
        return files + sum(map(_proportional, members)) > self.memory_limit


def _resident(pid: int) -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int((_PROC / str(pid) / "statm").read_bytes().split()[1]) * _PAGE
    return 0


def _proportional(pid: int) -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in (_PROC / str(pid) / "smaps_rollup").read_bytes().splitlines():
            if line.startswith(b"Pss:"):
                return int(line.split()[1]) * 1024
    return _resident(pid)
