"""Catches scripts that launch when a process which they started imports them.

Such a process imports the script of its parent. Without `if __name__ == "__main__":` the script launches once
more there, and so on; or Python refuses, the process ends, and a pool starts the next one, for ever.
"""

import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket

_PATIENCE_S = 10.0
_EXIT_CODE = 2


def refuse_reimport() -> None:
    """End this process, and the one that started it, where a launch comes from such an import.

    Call it where something is launched. It returns at once in any other process.
    """
    if not _being_imported():
        return
    # held until this process ends
    claim = _claim(starter := _starter())
    # once it is gone all has been said
    if claim is not None and _runs(starter):
        print(f"Error: {_message()}", file=sys.stderr, flush=True)
        _end(starter)
    # a process that cannot begin must not clean up after its parent either
    os._exit(_EXIT_CODE)


def watch_reimport() -> None:
    """Say the same where the script, when it is imported so, starts a process itself; Python refuses it."""
    if _being_imported():
        from multiprocessing import spawn

        # this process is doomed if that is called at all
        setattr(spawn, "_check_not_importing_main", refuse_reimport)  # noqa: B010


def _being_imported() -> bool:
    process = sys.modules.get("multiprocessing.process")
    return process is not None and getattr(process.current_process(), "_inheriting", False)


def _message() -> str:
    frame: FrameType | None = sys._getframe()
    while frame and (frame.f_globals.get("__name__"), frame.f_code.co_name) != ("__mp_main__", "<module>"):
        frame = frame.f_back
    place = f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame else "The script"
    return (
        f"{place} launches again: a process that the script has started imports it first. Everything but "
        'definitions belongs below `if __name__ == "__main__":`.'
    )


def _starter() -> int:
    """Return the process that runs the script: the parent, or that of the server which forks for it."""
    pid = os.getppid()
    try:
        if b"multiprocessing.forkserver" in Path(f"/proc/{pid}/cmdline").read_bytes():
            status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
            return int(next(line for line in status.splitlines() if line.startswith("PPid:")).split()[1])
    except OSError:
        pass
    return pid


def _claim(starter: int) -> "socket.socket | None":
    """Let one of several such processes act; the others get None."""
    import socket

    claim = socket.socket(socket.AF_UNIX)
    try:
        claim.bind(f"\0nemo-skills-main-guard-{starter}")
    except OSError:
        return None
    return claim


def _runs(pid: int) -> bool:
    """Tell whether a process lives and is Python: else another has taken its place."""
    try:
        return Path(f"/proc/{pid}/exe").samefile("/proc/self/exe")
    except OSError:
        return False


def _end(pid: int) -> None:
    """End the process that would go on starting others, in vain."""
    for signum in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + _PATIENCE_S
        if _runs(pid):
            os.kill(pid, signum)
        while _runs(pid) and time.monotonic() < deadline:
            time.sleep(0.01)
