"""Processes that do not outlive the one that started them.

`inference.server.family` has its own: it runs where this package is not installed, on older Pythons.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1


def die_with_this_process() -> Callable[[], None]:
    """Return what a child of this process runs after the fork, so that the kernel kills it with its parent.

    What it needs is found before the fork. Other systems than Linux only end a child whose parent is gone
    already.
    """
    libc = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
    parent = os.getpid()

    def in_child() -> None:
        if libc is not None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the call above
            os._exit(1)

    return in_child
