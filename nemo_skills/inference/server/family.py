"""A server's processes: all that it has started, and how none of them stays behind. Standard library only."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

_GUARD_GRACE_S = 3.0
_PR_SET_PDEATHSIG = 1
POLL_S = 0.05


class Stop:
    """Remembers that somebody asked for the end, or that the launcher's parent is gone."""

    def __init__(self) -> None:
        self._requested = False
        self._parent = os.getppid()
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(signum, self._handle)

    def _handle(self, _signum: int, _frame: object) -> None:
        self._requested = True

    def __bool__(self) -> bool:
        # polled, not PR_SET_PDEATHSIG: that fires when the *thread* that started us ends
        return self._requested or os.getppid() != self._parent


class Family:
    """The server and all that it started."""

    def __init__(self, session: int | None, mark: bytes) -> None:
        self._session = session
        self._mark = mark

    def members(self) -> list[int]:
        """Return the living members.

        Some leave the session, and some overwrite their environment with a process title: look for both.
        """
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            if int(folder.name) == os.getpid():
                continue
            with contextlib.suppress(OSError):
                state, _parent, group, session = (
                    (folder / "stat").read_bytes().rpartition(b")")[2].split()[:4]
                )
                if state in (b"Z", b"X"):
                    continue
                in_session = self._session in (int(group), int(session))
                if in_session or self._mark in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
        return found

    def end(self, grace: float, reap: Callable[[], object] = lambda: None) -> None:
        """Ask all members to end; after `grace` seconds make them."""
        self._signal(signal.SIGTERM)
        deadline = time.monotonic() + grace
        while time.monotonic() < deadline:
            reap()
            if not self._alive():
                return
            time.sleep(POLL_S)
        self._signal(signal.SIGKILL)

    def _alive(self) -> bool:
        if Path("/proc/self").exists():
            return bool(self.members())
        with contextlib.suppress(OSError):
            self._signal_session(0)
            return True
        return False

    def _signal_session(self, signum: int) -> None:
        if self._session is not None:
            os.killpg(self._session, signum)

    def _signal(self, signum: int) -> None:
        members = self.members()
        with contextlib.suppress(OSError):
            self._signal_session(signum)
        for pid in members:
            with contextlib.suppress(OSError):
                if os.getpgid(pid) != self._session:
                    os.kill(pid, signum)


class Guard:
    """A process that ends the server's family when the launcher is killed outright.

    The kernel's parent-death signal reaches the server alone; its workers are the guard's job.
    """

    def __init__(self, mark: bytes, on_death: Callable[[], object]) -> None:
        reading, self._writing = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._writing)
            self._watch(reading, mark, on_death)
        os.close(reading)

    @staticmethod
    def _watch(reading: int, mark: bytes, on_death: Callable[[], object]) -> None:
        os.setsid()
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(signum, signal.SIG_IGN)
        with os.fdopen(reading) as pipe:
            told = pipe.read().split()  # until the launcher closes its end, which death does too
        if told[-1:] != ["done"]:
            with contextlib.suppress(OSError):
                on_death()
            Family(int(told[-1]) if told else None, mark).end(_GUARD_GRACE_S)
        os._exit(0)

    def tell(self, session: int) -> None:
        """Say which session to end."""
        os.write(self._writing, b"%d\n" % session)

    def dismiss(self) -> None:
        """Let the guard go: the family has been taken care of."""
        os.write(self._writing, b"done\n")
        os.close(self._writing)
        os.waitpid(self._pid, 0)


def die_with_launcher() -> Callable[[], None] | None:
    """Return what a child runs before its exec, so that the kernel kills it when the launcher is gone."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    launcher = os.getpid()

    def in_child() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != launcher:  # it died before the call above
            os._exit(1)

    return in_child
