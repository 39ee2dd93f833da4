"""Forks boxes on demand, so that programs do not wait for an interpreter to start.

Runs by its path in the interpreter that programs get: `python -I zygote.py FD`, where FD is a socket to the
server. A message is a box to start; with it comes the socket through which the server talks to the keeper.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import shutil
import signal
import socket
import sys
import tempfile
from pathlib import Path

_PACKAGES = str(Path(__file__).resolve().parents[3])
if __name__ == "__main__":  # run by its path: this package need not be installed
    sys.path.insert(0, _PACKAGES)

from nemo_skills.code_execution.box import files, isolation, kernel  # noqa: E402
from nemo_skills.code_execution.box.family import Family  # noqa: E402
from nemo_skills.code_execution.box.keeper import Keeper  # noqa: E402
from nemo_skills.code_execution.box.limits import BoxOrder, Limits  # noqa: E402
from nemo_skills.code_execution.box.program import send  # noqa: E402

_MESSAGE_BYTES = 1 << 16


def main(number: int) -> None:
    """Fork boxes until the server is gone."""
    sys.path.remove(_PACKAGES)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's to understand
    gc.collect()
    gc.freeze()  # collections in boxes would only copy these pages
    with socket.socket(fileno=number) as orders:
        while True:
            message, descriptors, _, _ = socket.recv_fds(orders, _MESSAGE_BYTES, 1)
            if not message:
                return
            with socket.socket(fileno=descriptors[0]) as channel:
                try:
                    pid = os.fork()
                except OSError as error:
                    send(channel, {"failed": f"no new process: {error.strerror}"})
                    continue
                if pid == 0:
                    orders.close()
                    _box(_parse(message), channel)


def _parse(message: bytes) -> BoxOrder:
    order = json.loads(message)
    limits = Limits(**order.pop("limits"))
    return BoxOrder(limits=limits, visible=tuple(order.pop("visible")), **order)


def _box(order: BoxOrder, channel: socket.socket) -> None:
    """Be the watchdog of a box; does not return."""
    code = 1
    try:
        if order.isolated:
            kernel.die_with(os.getppid())
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if order.isolated:
            isolation.enter_namespaces()
            _watch(order, channel)
        else:
            with tempfile.TemporaryDirectory(prefix="ns-box-") as folder:
                os.chdir(folder)
                _watch(order, channel)
                os.chdir("/")
                shutil.rmtree(folder, ignore_errors=True)
        code = 0
    except Exception as error:
        _say(channel, error)
    os._exit(code)


def _watch(order: BoxOrder, channel: socket.socket) -> None:
    """Start the keeper; kill it when the server lets go."""
    lives, held = os.pipe()
    if not order.isolated:
        kernel.adopt_orphans()  # no namespace ends with the keeper
    watchdog = os.getpid()
    keeper = os.fork()
    if keeper == 0:
        try:
            os.close(lives)
            kernel.die_with(0 if order.isolated else watchdog)
            if order.isolated:
                files.build_root(order, isolation.program_uid(order))
            isolation.settle(order)
            Keeper(order, channel).serve()
        except Exception as error:
            _say(channel, error)
        os._exit(0)
    os.close(held)
    poll = select.poll()
    poll.register(lives, select.POLLIN)
    poll.register(channel, select.POLLRDHUP)
    poll.poll()
    os.kill(keeper, signal.SIGKILL)
    os.waitpid(keeper, 0)
    if not order.isolated:
        Family(order).kill()


def _say(channel: socket.socket, error: Exception) -> None:
    text = error.strerror if isinstance(error, OSError) and not error.filename else str(error)
    with contextlib.suppress(OSError):
        send(channel, {"failed": text or type(error).__name__})


if __name__ == "__main__":
    main(int(sys.argv[1]))
