"""Process 1 of a box: runs programs one after the other, watches them, and leaves nothing of them behind."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import socket
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from nemo_skills.code_execution.box import kernel
from nemo_skills.code_execution.box.family import Family
from nemo_skills.code_execution.box.files import empty_scratch
from nemo_skills.code_execution.box.limits import BoxOrder
from nemo_skills.code_execution.box.program import receive, run_script, run_session, send

_TICK_S = 0.02
_INTERRUPT_GRACE_S = 1.0
_FLOOD_BYTES = 64 << 20
"""A program that prints more than this is ended."""
_CHUNK = 1 << 16
_REPLY_BYTES = 1 << 12
_KILLED_BY_MACHINE = "sandbox: the machine has no memory left; the program was within its limits\n"
_MEMORY_ERROR = re.compile(rb"^[\w.]*MemoryError\b")


@dataclass
class Output:
    """The beginning of what a program prints; the rest is counted."""

    keep: int
    data: bytearray = field(default_factory=bytearray)
    total: int = 0
    last: bytes = b""

    def add(self, part: bytes) -> None:
        """Take in a part."""
        self.data += part[: max(0, self.keep - len(self.data))]
        self.total += len(part)
        self.last = (self.last + part)[-1000:]

    def text(self) -> str:
        """Return the output, with a note if not all of it is there."""
        shown = self.data.decode("utf-8", "replace")
        lost = self.total - len(self.data)
        return f"{shown}\n[output cut: {lost} more bytes]\n" if lost else shown


@dataclass
class Outcome:
    """How a program ended."""

    status: str
    stdout: str
    stderr: str
    exit_code: int | None
    duration_s: float


class Watch:
    """Follows a running program until it ends or goes too far."""

    def __init__(self, family: Family, pid: int, pipes: tuple[int, int], request: dict[str, Any]) -> None:
        self._family = family
        self._pid = pid
        self._outputs = {pipe: Output(int(request["keep_bytes"])) for pipe in pipes}
        self._order = tuple(self._outputs.values())
        self._started = time.monotonic()
        self._deadline = self._started + float(request["timeout_s"])
        self._interrupted = False
        family.forget()
        self._kernel_kills = kernel.oom_kills()

    def until_ended(self, control: socket.socket | None = None) -> tuple[Outcome, bool]:
        """Return the outcome, and whether the program lives on, to run more: only one with `control` can."""
        status, code, alive = "", None, False
        poll = select.poll()
        for pipe in (*self._outputs, self._family.wakeup, *([control.fileno()] if control else [])):
            poll.register(pipe, select.POLLIN)
        while not status:
            ready = {number for number, _ in poll.poll(_TICK_S * 1000)}
            for pipe in ready & self._outputs.keys():
                if not self._read(pipe):
                    poll.unregister(pipe)
            if control and control.fileno() in ready:
                code = _reply(control)
                alive = code is not None
                if code is None:
                    code = self._family.exit_code(self._pid, _INTERRUPT_GRACE_S)
                status = "error" if code is None else self._ended(code)
            elif self._family.ended(self._pid):
                code = self._family.exit_codes[self._pid]
                status = self._ended(code)
            else:
                status = self._gone_too_far(interruptible=control is not None)
        if alive:
            self._family.freeze()
        else:
            self._family.kill()
        for pipe in self._outputs:
            while self._read(pipe):
                pass
        return self._outcome(status, code), alive

    def _outcome(self, status: str, code: int | None) -> Outcome:
        out, err = self._order
        lines = err.last.strip().splitlines()
        if self._interrupted:
            status = "timed_out"
        elif status == "error" and lines and _MEMORY_ERROR.match(lines[-1]):
            status = "memory"
        taken = time.monotonic() - self._started
        note = _KILLED_BY_MACHINE if status == "infrastructure" else ""
        return Outcome(status, out.text(), err.text() + note, code, round(taken, 4))

    def _read(self, pipe: int) -> bool:
        """Take what a pipe holds; false when there is no more."""
        try:
            part = os.read(pipe, _CHUNK)
        except BlockingIOError:
            return False
        self._outputs[pipe].add(part)
        return bool(part) and self._outputs[pipe].total <= 2 * _FLOOD_BYTES

    def _ended(self, code: int) -> str:
        if code != -signal.SIGKILL:
            return "error" if code else "completed"
        # not by us: by the kernel, for want of memory here or in our container, or by the program itself
        if self._family.peak > self._family.memory_limit:
            return "memory"
        kills = kernel.oom_kills()
        return "error" if kills is not None and kills == self._kernel_kills else "infrastructure"

    def _gone_too_far(self, *, interruptible: bool) -> str:
        now = time.monotonic()
        if now > self._deadline:
            if not interruptible or self._interrupted:
                return "timed_out"
            self._interrupted = True
            self._deadline = now + _INTERRUPT_GRACE_S
            self._family.interrupt(self._pid)
        if any(output.total > _FLOOD_BYTES for output in self._order):
            return "output_limit"
        return self._family.excess()


def _reply(control: socket.socket) -> int | None:
    """Return the exit code of a cell; None when the program is gone or writes nonsense."""
    try:
        control.settimeout(_INTERRUPT_GRACE_S)
        message = control.recv(_REPLY_BYTES)
        found = re.search(rb'"exit_code": (\d{1,3})', message)
        return int(found[1]) if found else None
    except OSError:
        return None


@dataclass
class Worker:
    """The process of a session."""

    pid: int
    pipes: tuple[int, int]
    control: socket.socket


class Keeper:
    """Does what the server asks."""

    def __init__(self, order: BoxOrder, channel: socket.socket) -> None:
        self._order = order
        self._channel = channel
        self._family = Family(order)
        self._worker: Worker | None = None

    def serve(self) -> None:
        """Answer requests until the server lets go."""
        send(self._channel, {"ready": True})
        while True:
            try:
                request = receive(self._channel)
            except (EOFError, OSError):
                return
            try:
                answer = self._answer(request)
            except (OSError, MemoryError) as error:
                answer = {"failed": f"{type(error).__name__}: {error}"}
            send(self._channel, answer)

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["op"] == "cell":
            outcome, alive = self._cell(request)
            return {"results": [asdict(outcome)], "alive": alive}
        results: list[dict[str, Any]] = []
        for number, stdin in enumerate(request["stdins"]):
            if number:
                empty_scratch(self._order)
            outcome = self._script(request, stdin)
            results.append(asdict(outcome))
            if request["stop_at_failure"] and outcome.status != "completed":
                break
        return {"results": results, "alive": False}

    def _script(self, request: dict[str, Any], stdin: str) -> Outcome:
        out, err = _pipe(), _pipe()
        source = _stdin(stdin)
        pid = os.fork()
        if pid == 0:
            _in_child(lambda: run_script(self._order, request["code"], (source, out[1], err[1])))
        for number in (source, out[1], err[1]):
            os.close(number)
        try:
            return Watch(self._family, pid, (out[0], err[0]), request).until_ended()[0]
        finally:
            os.close(out[0])
            os.close(err[0])

    def _cell(self, request: dict[str, Any]) -> tuple[Outcome, bool]:
        worker = self._worker or self._start_worker()
        self._family.thaw()
        worker.control.settimeout(None)
        watch = Watch(self._family, worker.pid, worker.pipes, request)
        with contextlib.suppress(OSError):  # a worker that is gone will be noticed
            send(worker.control, {"code": request["code"]})
        return watch.until_ended(worker.control)

    def _start_worker(self) -> Worker:
        out, err = _pipe(), _pipe()
        ours, its = socket.socketpair()
        source = os.open(os.devnull, os.O_RDONLY)
        pid = os.fork()
        if pid == 0:
            _in_child(lambda: run_session(self._order, (source, out[1], err[1]), its.detach()))
        for number in (source, out[1], err[1]):
            os.close(number)
        its.close()
        self._worker = Worker(pid, (out[0], err[0]), ours)
        return self._worker


def _in_child(run: Any) -> None:
    """Run in a process of its own, which does not come back."""
    try:
        run()
    except BaseException as error:
        os.write(2, f"sandbox: cannot start the program: {error!r}\n".encode())
    finally:
        os._exit(1)


def _pipe() -> tuple[int, int]:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    return reading, writing


def _stdin(text: str) -> int:
    """Return a file that is nowhere in the file system."""
    number = os.memfd_create("stdin")
    data = text.encode("utf-8", "surrogatepass")
    view = memoryview(data)
    while view:
        view = view[os.write(number, view) :]
    os.lseek(number, 0, os.SEEK_SET)
    return number
