"""The process that loads a grader once and forks the workers, and what a worker does.

Forking from here costs milliseconds where starting Python and importing a grader's libraries costs seconds,
so killing a worker that hangs is cheap. The nursery ends when its control socket is closed, which the death
of the pool's process does too; then it kills the workers, whatever they are doing.
"""

import gc
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

import orjson

from nemo_skills.core.errors import UserError
from nemo_skills.core.parent import die_with_this_process
from nemo_skills.evaluation.graders import Grader, GraderSpec
from nemo_skills.evaluation.pool._wire import HELLO, WANTED, Board, Progress, encode_grades, frame, receive
from nemo_skills.evaluation.verdicts import Grade, Verdict

# a worker that is killed loses the grades that it has not sent: at most so many seconds of work
_SEND_EVERY_S = 0.005


class Nursery:
    """Starts a worker whenever the pool asks for one."""

    def __init__(self, control: socket.socket, board: Board, grader: Grader, memory: int) -> None:
        self._control = control
        self._board = board
        self._grader = grader
        self._memory = memory
        self._pids: set[int] = set()
        self._die_with_this_process = die_with_this_process()

    def run(self) -> None:
        """Start workers until the pool goes away."""
        reading, writing = os.pipe()
        for end in (reading, writing):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        control = self._control.fileno()
        while True:
            ready, _, _ = select.select([control, reading], [], [])
            with suppress(BlockingIOError):
                os.read(reading, 4096)
            self._reap()
            if control in ready:
                wanted = self._control.recv(WANTED.size * 256, socket.MSG_DONTWAIT)
                if not wanted:
                    return
                for (slot,) in WANTED.iter_unpack(wanted):
                    self._start(slot)

    def kill_all(self) -> None:
        """End all workers."""
        for pid in self._pids:
            os.kill(pid, signal.SIGKILL)

    def _reap(self) -> None:
        with suppress(ChildProcessError):
            while (pid := os.waitpid(-1, os.WNOHANG)[0]) != 0:
                self._pids.discard(pid)

    def _start(self, slot: int) -> None:
        ours, theirs = socket.socketpair()
        self._board.write(slot, Progress(0, 0.0))
        pid = os.fork()
        if pid == 0:
            ours.close()
            self._control.close()
            _become_worker(self._die_with_this_process, self._memory)
            _serve(theirs, self._grader, self._board, slot)
        self._pids.add(pid)
        theirs.close()
        with ours, suppress(BrokenPipeError):
            socket.send_fds(self._control, [HELLO.pack(slot, pid)], [ours.fileno()])


def _become_worker(die_with_nursery: Callable[[], None], memory: int) -> None:
    signal.set_wakeup_fd(-1)
    for signum in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(signum, signal.SIG_DFL)
    die_with_nursery()
    if memory:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


def _serve(channel: socket.socket, grader: Grader, board: Board, slot: int) -> NoReturn:
    """Grade what comes, until the pool closes the channel."""
    begun = 0
    with suppress(OSError):
        for message in receive(channel):
            grades: list[Grade] = []
            sent = time.monotonic()
            for row in orjson.loads(message):
                begun += 1
                now = time.monotonic()
                if now - sent > _SEND_EVERY_S and grades:
                    channel.sendall(encode_grades(grades))
                    grades.clear()
                    sent = now = time.monotonic()
                board.write(slot, Progress(begun, now, time.process_time()))
                grades.append(_grade(grader, row))
                board.write(slot, Progress(begun, 0.0))
            channel.sendall(encode_grades(grades))
    os._exit(0)


def _grade(grader: Grader, row: dict[str, Any]) -> Grade:
    try:
        grade = grader.grade(row)
        encode_grades([grade])
        return grade
    except MemoryError:
        return Grade(verdict=Verdict.timed_out, details={"error": "grading took too much memory"})
    except Exception as error:
        shown = f"{type(error).__name__}: {error}"[:500]
        return Grade(verdict=Verdict.grader_error, details={"error": shown})


def main() -> None:
    """Run the nursery; its arguments are in one JSON object."""
    arguments = orjson.loads(sys.argv[1])
    # Ctrl-C reaches the whole group of processes; the pool decides what to do
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    control = socket.socket(fileno=arguments["control"])
    try:
        grader = GraderSpec(name=arguments["grader"], options=arguments["options"]).make()
        grader.warm_up()
    except UserError as error:
        with suppress(OSError):
            control.sendall(HELLO.pack(-1, 0) + frame(str(error).encode()))
        return
    gc.collect()
    gc.freeze()  # or the collector would touch, and so copy, all memory in each worker
    nursery = Nursery(control, Board(arguments["board"], arguments["slots"]), grader, arguments["memory"])
    try:
        # a pool that went away with something unread resets the connection
        with suppress(ConnectionResetError):
            nursery.run()
    finally:
        nursery.kill_all()
