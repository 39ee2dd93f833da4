"""Daemons as context managers: started under `guard.py`, so that nothing of them survives the tests."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.services import guard

# Debian keeps daemons in sbin, which an ordinary PATH lacks.
SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])


class ServiceError(RuntimeError):
    """A service did not come up, or a command against it failed."""


def program(*names: str) -> str:
    """The absolute path of the first of these programs that is installed."""
    for name in names:
        if found := shutil.which(name, path=SEARCH_PATH):
            return found
    raise ServiceError(f"{' or '.join(names)} is not installed (tests/services/install.sh installs it)")


def missing_programs(names: Sequence[str]) -> list[str]:
    """Those of the programs that are not installed."""
    return [name for name in names if shutil.which(name, path=SEARCH_PATH) is None]


def free_ports(count: int) -> list[int]:
    """Loopback ports nobody listens on, below the range the kernel hands to outgoing connections."""
    found: list[int] = []
    candidates = random.sample(range(18_000, 32_000), 2_000)
    for port in candidates:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise ServiceError("no free port found")


def wait_until(what: str, ready: Callable[[], object], timeout_s: float = 30.0) -> None:
    """Poll until `ready()` is true (a `ServiceError` means "not yet"); name `what` at the timeout."""
    deadline = time.monotonic() + timeout_s
    reason = ""
    while True:
        try:
            if ready():
                return
        except ServiceError as error:
            reason = f": {error}"
        if time.monotonic() > deadline:
            raise ServiceError(f"{what}: not so after {timeout_s:g} s{reason}")
        time.sleep(0.02)


def run(argv: Sequence[str], env: Mapping[str, str] | None = None, stdin: str = "") -> str:
    """Standard output of a command that must succeed."""
    done = subprocess.run(argv, env=env, text=True, capture_output=True, input=stdin)
    if done.returncode:
        raise ServiceError(f"{' '.join(argv)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


class Daemon:
    """One daemon in the foreground, its log in a file, and all its offspring."""

    def __init__(
        self,
        argv: Sequence[str],
        log: Path,
        env: Mapping[str, str] | None = None,
        *,
        private_mounts: bool = False,
    ) -> None:
        self.name = Path(argv[0]).name
        self.log = log
        options = ["--private-mounts"] if private_mounts else []
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", guard.__file__, str(log), *options, "--", *argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=env,
            cwd="/",
        )
        assert self._guard.stdout is not None
        first = self._guard.stdout.readline()
        if not first:
            raise ServiceError(f"{self.name} could not be started:\n{self.tail()}")
        self.pid = int(first)

    def tail(self, lines: int = 20) -> str:
        """The end of the log."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def alive(self) -> bool:
        """Whether the daemon itself runs (its guard may go on without it)."""
        return self._guard.poll() is None and self.pid in guard.descendants(self._guard.pid)

    def processes(self) -> list[int]:
        """The pids of everything this daemon started and that still runs, itself included."""
        return guard.descendants(self._guard.pid) if self._guard.poll() is None else []

    def wait_ready(self, ready: Callable[[], object], timeout_s: float = 30.0) -> None:
        """Poll until `ready()`; stop early, with the log's end, when the daemon has died."""

        died = False

        def check() -> bool:
            nonlocal died
            died = not self.alive()
            return died or bool(ready())

        try:
            wait_until(f"{self.name} ready", check, timeout_s)
            if died:
                raise ServiceError(f"{self.name} died")
        except ServiceError as error:
            raise ServiceError(f"{error}\nlog of {self.name}:\n{self.tail()}") from None

    def kill(self, number: int) -> None:
        """Send a signal to the daemon alone; what it started lives on, owned by the guard."""
        os.kill(self.pid, number)

    def end_offspring(self) -> None:
        """Kill everything the daemon started, but not the daemon."""
        for pid in self.processes():
            if pid != self.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def stop(self) -> None:
        """End the daemon and everything it started; calling it again is harmless."""
        assert self._guard.stdin is not None and self._guard.stdout is not None
        self._guard.stdin.close()
        self._guard.stdout.close()
        self._guard.wait()
