"""Runs the components of one job as processes of this machine; the first exit ends all."""

import contextlib
import os
import queue
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, BinaryIO, NoReturn

from nemo_skills.core.errors import JobFailedError, UserError
from nemo_skills.core.log import get_logger

LOG = get_logger(__name__)

GRACE_S = 10.0
"""Time between SIGTERM and SIGKILL."""
HELPER_GRACE_S = 3.0
"""What is left of it once the main is gone: servers and sandboxes have nothing to save."""
_CLEAN_UP_S = 60.0
_BIRTH_S = 10.0
_IMPATIENCE_S = 0.5
_TAIL_LINES = 15
_TERMINAL = 1
_TERMINAL_CODES = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(frozen=True, kw_only=True)
class Process:
    """One component, ready to start."""

    name: str
    script: Path
    log: Path
    is_main: bool
    replica: bool = False
    """Whether the job goes on without it while another replica lives."""
    up: Path | None = None
    """File that appears when a signal reaches the component itself, where that takes a moment."""


@dataclass
class _Running:
    process: Process
    popen: "subprocess.Popen[bytes]"
    copier: threading.Thread
    exited: "queue.SimpleQueue[_Running]" = field(repr=False)

    def watch(self) -> None:
        self.popen.wait()
        self.exited.put(self)


def run_job(
    job_name: str, processes: list[Process], env: Mapping[str, str], *, clean_up: Sequence[str] = ()
) -> None:
    """Run the processes until the first one ends, or the last of several replicas; then end the others.

    `env` is the whole environment of the processes; its `NS_RUN_DIR` marks the job's processes as such.
    `clean_up` is a command that ends what the processes may leave outside of the process table.

    Raises:
        JobFailedError: with the main's exit code, or 1 when another component ended before the main.
        SystemExit: SIGTERM or SIGHUP arrived; the processes are gone by then.
        KeyboardInterrupt: Ctrl-C; the processes are gone by then. A second one shortens the time that they
            have to end, and no number of them skips the clean-up.
    """
    exited: queue.SimpleQueue[_Running] = queue.SimpleQueue()
    running: list[_Running] = []
    with Signals() as signals:
        try:
            with signals.held():  # a process that is not listed yet would not be ended
                for process in processes:
                    running.append(_start(process, env, exited))
            first = _first_to_end_the_job(exited, running)
        finally:
            signals.only_hurry()
            _end_all(running, env["NS_RUN_DIR"], signals)
            if clean_up:
                _clean_up(clean_up)
        signals.raise_late()
    _judge(job_name, first)


def _first_to_end_the_job(exited: "queue.SimpleQueue[_Running]", running: list[_Running]) -> _Running:
    replicas = sum(one.process.replica for one in running)
    while True:
        first = exited.get()
        if first.process.is_main:
            return first
        replicas -= first.process.replica
        if not first.process.replica or not replicas:
            return _main_exited(exited) or first
        LOG.warning(
            "%s ended with exit code %s; the job goes on with %d more. Log: %s",
            *(first.process.name, first.popen.returncode, replicas, first.process.log),
        )


def _main_exited(exited: "queue.SimpleQueue[_Running]") -> _Running | None:
    # a server that ends because its client is done must not be blamed: give the main a moment to be seen
    deadline = time.monotonic() + 0.2
    while (left := deadline - time.monotonic()) > 0:
        with contextlib.suppress(queue.Empty):
            other = exited.get(timeout=left)
            if other.process.is_main:
                return other
    return None


def _judge(job_name: str, first: _Running) -> None:
    code = first.popen.returncode
    if first.process.is_main and code == 0:
        return
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    message = f"job {job_name}: {first.process.name} {how}; log: {first.process.log}"
    if not first.process.is_main:
        message += f" while the main was running. Its last lines:\n{tail(first.process.log)}"
        raise JobFailedError(message, exit_code=1)
    raise JobFailedError(message, exit_code=128 - code if code < 0 else code)


def tail(log: Path, lines: int = _TAIL_LINES) -> str:
    """Return the last lines of a log file, indented; empty when there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 64_000))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(f"  | {line}" for line in text.splitlines()[-lines:])


def _start(process: Process, env: Mapping[str, str], exited: "queue.SimpleQueue[_Running]") -> _Running:
    try:
        process.log.parent.mkdir(parents=True, exist_ok=True)
        log = process.log.open("ab", buffering=0)
    except OSError as err:
        raise UserError(f"cannot write the log {process.log}: {err.strerror}") from err
    popen = subprocess.Popen(
        [*_die_with_parent(), "bash", str(process.script)],
        env=dict(env) | {"NS_SERVER_LOG": str(process.log)} if not process.is_main else dict(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    assert popen.stdout is not None
    copier = threading.Thread(target=_copy, args=(popen.stdout, log, process.is_main), daemon=True)
    running = _Running(process, popen, copier, exited)
    copier.start()
    threading.Thread(target=running.watch, daemon=True).start()
    return running


def _copy(source: IO[bytes], log: BinaryIO, to_terminal: bool) -> None:
    """Copy output to the terminal as it is, and to the log without colours and overwritten progress bars."""
    pending = b""
    with source, log:
        while chunk := os.read(source.fileno(), 65536):
            if to_terminal:
                with contextlib.suppress(OSError):
                    os.write(_TERMINAL, chunk)
            *lines, pending = (pending + chunk).split(b"\n")
            # a progress bar overwrites itself without end: only its last state is kept
            pending = pending[max(0, pending.rfind(b"\r", 0, -1)) :]
            with contextlib.suppress(OSError):  # a full disk must not end the job for its log's sake
                log.write(b"".join(_plain(line) + b"\n" for line in lines))
        with contextlib.suppress(OSError):
            log.write(_plain(pending))


def _plain(line: bytes) -> bytes:
    return _TERMINAL_CODES.sub(b"", line.rstrip(b"\r")).rsplit(b"\r", 1)[-1]


def _end_all(running: list[_Running], run_dir: str, signals: "Signals") -> None:
    """End every process of the job: SIGTERM first, SIGKILL after the grace time or one more signal to us."""
    _await_births(running)
    _signal_all(running, run_dir, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_S
    main_lives = True
    while (any(r.popen.poll() is None for r in running) or _members(run_dir)) and not signals.hurry:
        if main_lives and not any(r.process.is_main and r.popen.poll() is None for r in running):
            main_lives = False
            deadline = min(deadline, time.monotonic() + HELPER_GRACE_S)
        if time.monotonic() > deadline:
            break
        time.sleep(0.02)
    if signals.hurry:
        LOG.warning("interrupted again: killing what is left")
    _signal_all(running, run_dir, signal.SIGKILL)
    for one in running:
        one.popen.wait()
        one.copier.join(timeout=2)


def _await_births(running: list[_Running]) -> None:
    # a client that is killed while Docker creates its container leaves one behind that nobody knows of
    deadline = time.monotonic() + _BIRTH_S
    while time.monotonic() < deadline and any(
        r.process.up and not r.process.up.exists() and r.popen.poll() is None for r in running
    ):
        time.sleep(0.02)


def _clean_up(command: Sequence[str]) -> None:
    # in a session of its own: the Ctrl-C of an impatient user must not end it
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_CLEAN_UP_S,
            start_new_session=True,
            check=False,
        )


def _signal_all(running: list[_Running], run_dir: str, signum: signal.Signals) -> None:
    groups = {one.popen.pid for one in running if one.popen.poll() is None}
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signum)
    for pid in _members(run_dir):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getpgid(pid) not in groups:
                os.kill(pid, signum)


def end_leftovers(run_dir: str) -> None:
    """End what is left of a job whose supervisor was killed outright."""
    _signal_all([], run_dir, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_S
    while _members(run_dir) and time.monotonic() < deadline:
        time.sleep(0.05)
    _signal_all([], run_dir, signal.SIGKILL)


def _members(run_dir: str) -> list[int]:
    """Return the living processes of the job: those that inherited its `NS_RUN_DIR`.

    This finds daemons that left their process group and orphans that init adopted. Linux only.
    """
    marker = b"NS_RUN_DIR=" + os.fsencode(run_dir)
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        # zombies have no environ left; other users' processes cannot be read
        with contextlib.suppress(OSError):
            if marker in environ.read_bytes().split(b"\0"):
                found.append(int(environ.parent.name))
    return found


def _die_with_parent() -> list[str]:
    """Return the prefix that has a command end when this program is killed outright, where there is one."""
    return ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []


class Signals:
    """Turns the first Ctrl-C, SIGTERM or SIGHUP into an exception; later ones only hurry the clean-up."""

    def __init__(self) -> None:
        self._received: list[int] = []
        self._latest = 0.0
        self._before: dict[signal.Signals, Callable[[int, FrameType | None], object] | int | None] = {}
        self._silent = False
        self._cleaning_since = 0.0

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                # what was ignored from the start, as under nohup, stays so
                if signal.getsignal(signum) is not signal.SIG_IGN:
                    self._before[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(self, *_exception: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _handle(self, signum: int, _frame: FrameType | None) -> None:
        self._received.append(signum)
        self._latest = time.monotonic()
        if not self._silent:
            self._silent = True
            self._raise(signum)

    @staticmethod
    def _raise(signum: int) -> NoReturn:
        raise KeyboardInterrupt if signum == signal.SIGINT else SystemExit(128 + signum)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Raise for signals that arrive inside the block at its end."""
        self._silent = True
        yield
        self.raise_late()
        self._silent = False

    def only_hurry(self) -> None:
        """Raise no more from here on."""
        self._silent = True
        self._cleaning_since = time.monotonic()

    @property
    def hurry(self) -> bool:
        """Whether a signal arrived during the clean-up."""
        # not at once: some programs, such as timeout, signal us and then the group that we are in
        return self._latest > self._cleaning_since + _IMPATIENCE_S

    def raise_late(self) -> None:
        """Raise for a signal that arrived while none was raised."""
        if self._received:
            self._raise(self._received[0])


def terminal_env() -> dict[str, str]:
    """Tell mains, whose output goes through a pipe, that a terminal of this width shows it."""
    if not os.isatty(_TERMINAL):
        return {}
    return {"NS_TERMINAL_WIDTH": str(shutil.get_terminal_size().columns)}
