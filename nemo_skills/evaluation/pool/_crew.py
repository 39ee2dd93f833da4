"""The pool's side of its workers: starting the nursery, sending batches, reading grades, killing."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from dataclasses import dataclass, field

import orjson

from nemo_skills.core.errors import UserError
from nemo_skills.evaluation.graders import GraderSpec
from nemo_skills.evaluation.pool._wire import (
    HELLO,
    READ_SIZE,
    WANTED,
    Board,
    FrameReader,
    Progress,
    decode_grades,
    frame,
)
from nemo_skills.evaluation.verdicts import Grade

_START = "import sys; sys.path[:] = {path!r}; from nemo_skills.evaluation.pool._nursery import main; main()"
_END_S = 10.0
# an answer that computes gets at least this share of a processor, or its time is up all the same
_STARVED = 10.0


@dataclass(frozen=True, slots=True)
class Task:
    """An answer on its way."""

    position: int
    raw: bytes
    attempts: int = 0
    """How many workers have died over it."""
    round: int = 0
    """How often it was put off because it took long."""


@dataclass(kw_only=True)
class Worker:
    """A worker process and what it has to do."""

    slot: int
    pid: int
    channel: socket.socket
    board: Board
    tasks: deque[Task] = field(default_factory=deque)
    """What was sent and has no grade yet, in order."""
    graded: int = 0
    killed: bool = False
    """Whether we killed it, because its answer took too long."""
    _reader: FrameReader = field(default_factory=FrameReader)
    _unsent: bytearray = field(default_factory=bytearray)

    @property
    def wants_to_send(self) -> bool:
        """Whether a part of a batch did not fit into the channel yet."""
        return bool(self._unsent)

    def send(self, tasks: list[Task]) -> None:
        """Give it a batch."""
        self.tasks += tasks
        self._unsent += frame(b"[" + b",".join(task.raw for task in tasks) + b"]")
        self.flush()

    def flush(self) -> None:
        """Send what fits into the channel."""
        # a closed channel shows when it is read
        with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            while self._unsent:
                del self._unsent[: self.channel.send(self._unsent)]

    def read(self) -> list[tuple[Task, Grade]] | None:
        """Return the grades that have arrived; None when the worker is dead and all has been read."""
        try:
            piece = self.channel.recv(READ_SIZE)
        except BlockingIOError:
            return []
        except ConnectionResetError:
            return None
        if not piece:
            return None
        grades = [grade for message in self._reader.feed(piece) for grade in decode_grades(message)]
        self.graded += len(grades)
        return [(self.tasks.popleft(), grade) for grade in grades]

    @property
    def progress(self) -> Progress:
        """What it is doing."""
        return self.board.read(self.slot)

    def in_work(self) -> int | None:
        """Return which of `tasks` it is at, or was at when it died."""
        answer, since, _ = self.progress
        index = answer - self.graded - 1
        return index if since and 0 <= index < len(self.tasks) else None

    def age(self, *, computing: bool) -> float:
        """Return how long its answer has taken so far.

        Args:
            computing: count time of the processor, of which a busy machine gives little.
        """
        progress = self.progress
        if not progress.since:
            return 0.0
        passed = time.monotonic() - progress.since
        if not computing:
            return passed
        used = _processor_time(self.pid)
        return passed if used is None else max(used - progress.processor, passed / _STARVED)

    def kill(self) -> None:
        """End it at once."""
        self.killed = True
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


def _processor_time(pid: int) -> float | None:
    """Return how much time of a processor another process has used, where the system tells."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        # what clock_getcpuclockid(3) returns
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return None


class Crew:
    """The nursery and how to get at the workers it makes."""

    def __init__(self, spec: GraderSpec, slots: int, memory: int) -> None:
        self.control, theirs = socket.socketpair()
        with tempfile.TemporaryFile() as shared, theirs:
            shared.truncate(Board.size(slots))
            self._board = Board(shared.fileno(), slots)
            arguments = {
                "control": theirs.fileno(),
                "board": shared.fileno(),
                "grader": spec.name,
                "options": dict(spec.options),
                "slots": slots,
                "memory": memory,
            }
            self._process = subprocess.Popen(
                [sys.executable, "-c", _START.format(path=sys.path), orjson.dumps(arguments).decode()],
                pass_fds=[theirs.fileno(), shared.fileno()],
                # the workers are the parallelism
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
            )

    def close(self) -> None:
        """End all processes."""
        # the nursery takes this as the sign to kill the workers and end
        self.control.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._board.close()

    def ask_for(self, slot: int) -> None:
        """Have a worker made for a slot."""
        # a nursery that is gone shows when its answer is read
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.control.sendall(WANTED.pack(slot))

    def welcome(self) -> Worker:
        """Take over a new worker, once the control socket is readable.

        Raises:
            UserError: the grader cannot be made, or the nursery died.
        """
        hello, descriptors, _, _ = socket.recv_fds(self.control, HELLO.size, 1)
        if not hello:
            status = self._process.wait()
            raise UserError(
                f"The process that starts graders ended unexpectedly (status {status}).", exit_code=1
            )
        slot, pid = HELLO.unpack(hello)
        if slot < 0:
            raise UserError(self._complaint())
        os.set_inheritable(descriptors[0], False)
        channel = socket.socket(fileno=descriptors[0])
        channel.setblocking(False)
        return Worker(slot=slot, pid=pid, channel=channel, board=self._board)

    def _complaint(self) -> str:
        reader = FrameReader()
        while piece := self.control.recv(READ_SIZE):
            for message in reader.feed(piece):
                return message.decode()
        return "The grader could not be started."
