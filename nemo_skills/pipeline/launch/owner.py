"""Marks the process that runs an experiment, so that another one can tell whether it still lives."""

import enum
import os
import signal
import socket
from pathlib import Path

from nemo_skills.core.errors import UserError


class Life(enum.Enum):
    """What is known about a process."""

    ALIVE = "alive"
    GONE = "gone"
    ELSEWHERE = "elsewhere"
    """It runs, or ran, on another machine that shares our folders."""


def this_process() -> str:
    """Return the mark of the running process: machine, number, and start, as numbers are used again."""
    return f"{socket.gethostname()}:{os.getpid()}:{_start_of(os.getpid())}"


def life_of(mark: str) -> Life:
    """Return whether the process of a mark lives."""
    host, pid, start = mark.rsplit(":", 2)
    if host != socket.gethostname():
        return Life.ELSEWHERE
    return Life.ALIVE if _start_of(int(pid)) == start else Life.GONE


def end_process(mark: str) -> None:
    """Ask the process of a mark to end; it takes down what it started.

    Raises:
        UserError: it is not ours to end.
    """
    host, pid, _ = mark.rsplit(":", 2)
    if life_of(mark) is Life.ELSEWHERE:
        raise UserError(f"it was started on {host}; cancel it there")
    try:
        os.kill(int(pid), signal.SIGTERM)
    except ProcessLookupError:
        return
    except PermissionError:
        raise UserError(f"process {pid} belongs to another user") from None


def _start_of(pid: int) -> str:
    """Return when a process started; empty for a process that is no more, or only waits to be reaped."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2]
    except FileNotFoundError:
        return "" if Path("/proc/self").exists() else _without_proc(pid)
    except OSError:
        return ""
    state, *rest = fields.split()
    return "" if state in ("Z", "X") else rest[18]


def _without_proc(pid: int) -> str:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return "running"
