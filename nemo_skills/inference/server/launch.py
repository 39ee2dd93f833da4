"""Starts one model server on a free port of this node and says where it is.

Needs nothing but the standard library of Python 3.8, and runs by file path in any container:

    python launch.py --name vllm --index 0 --ready-path /health -- python -m … --host {host} --port {port}

`$NS_RUN_DIR/server-<index>.json` tells clients the address and, later, that the server has ended. The server
ends with the launcher, however the launcher ends, and takes all its children with it.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Collection
from pathlib import Path

PORTS = range(20000, 32000)
"""Below Linux's range for outgoing connections, which would take a port between our probe and the server."""
GRACE_S = 8.0
"""Between SIGTERM and SIGKILL; less than the 10 seconds after which job supervisors kill the launcher."""
_GUARD_GRACE_S = 3.0
_PR_SET_PDEATHSIG = 1
_POLL_S = 0.05
_ATTEMPTS = 5
_LOOPBACK = "127.0.0.1"
_ANY = "0.0.0.0"  # noqa: S104


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


class Reservation:
    """A free port that no other launcher of this node chooses while this one lives.

    A probe alone is not enough: servers load for minutes before they listen, and some (vLLM) share a port
    with a stranger silently through SO_REUSEPORT. An abstract Unix socket is a lock with the scope of a port:
    one network namespace, across containers and users, released by the kernel.
    """

    def __init__(self, tried: Collection[int] = ()) -> None:
        candidates = [port for port in PORTS if port not in tried]
        random.shuffle(candidates)
        for port in candidates:
            lock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            with contextlib.suppress(OSError):
                if sys.platform.startswith("linux"):
                    lock.bind(f"\0nemo-skills-port-{port}")
                if not port_taken(port, recently=True):
                    self.port, self._lock = port, lock
                    return
            lock.close()
        sys.exit(f"launch: no free port between {PORTS.start} and {PORTS.stop - 1}")

    def release(self) -> None:
        """Let others have the port."""
        self._lock.close()


def port_taken(port: int, *, recently: bool = False) -> bool:
    """Tell whether a socket of this node has the port; `recently`: or had it, and connections linger."""
    for family, address in ((socket.AF_INET, _ANY), (socket.AF_INET6, "::")):
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                if not recently:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind((address, port))
        except OSError as err:
            if err.errno in (errno.EADDRINUSE, errno.EACCES):
                return True
    return False


def advertised_host(choice: str) -> str:
    """Return the address under which clients reach this node; `auto` finds one that other nodes can use."""
    if choice != "auto":
        return choice
    with contextlib.suppress(OSError):
        address = socket.gethostbyname(socket.gethostname())
        if not address.startswith("127."):
            return address
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing: asks the routing table which address we would use
        return str(probe.getsockname()[0])
    return _LOOPBACK


class Publication:
    """The server's entry in the run folder; without a run folder, nothing."""

    def __init__(self, options: argparse.Namespace) -> None:
        folder = os.environ.get("NS_RUN_DIR")
        self._path = Path(folder) / f"server-{options.index}.json" if folder else None
        self._entry: dict[str, object] = {
            "name": options.name,
            "index": options.index,
            "count": options.count,
            "model": options.model,
            "ready_path": options.ready_path,
            "host": advertised_host(options.advertise),
            "port": None,
            "log": os.environ.get("NS_SERVER_LOG"),
        }

    def write(self, **state: object) -> None:
        """Replace the entry atomically: readers see the old or the new one, never half of it."""
        self._entry.update(state)
        if self._path is None:
            return
        temporary = self._path.with_name(f"{self._path.name}.{os.getpid()}.tmp")
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(self._entry, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._path)


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
            time.sleep(_POLL_S)
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

    def __init__(self, mark: bytes, publication: Publication) -> None:
        reading, self._writing = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._writing)
            self._watch(reading, mark, publication)
        os.close(reading)

    @staticmethod
    def _watch(reading: int, mark: bytes, publication: Publication) -> None:
        os.setsid()
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(signum, signal.SIG_IGN)
        with os.fdopen(reading) as pipe:
            told = pipe.read().split()  # until the launcher closes its end, which death does too
        if told[-1:] != ["done"]:
            with contextlib.suppress(OSError):
                publication.write(state="exited", exit_code=128 + signal.SIGKILL)
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


def _die_with_launcher() -> Callable[[], None] | None:
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


class Launcher:
    """Runs the server until it ends or somebody asks for the end."""

    def __init__(self, options: argparse.Namespace, publication: Publication) -> None:
        launch_id = uuid.uuid4().hex
        self._options = options
        self._publication = publication
        self._stop = Stop()
        self._mark = f"NS_LAUNCH_ID={launch_id}".encode()
        self._env = dict(os.environ, NS_LAUNCH_ID=launch_id)
        for name, _, value in (pair.partition("=") for pair in options.env):
            self._env.setdefault(name, value)

    def run(self) -> int:
        """Return the server's exit code."""
        guard = Guard(self._mark, self._publication)
        tried: list[int] = []
        while True:
            reserved = Reservation(tried)
            tried.append(reserved.port)
            code, lost_port = self._run_once(reserved.port, guard)
            reserved.release()
            if not lost_port or self._stop or len(tried) == _ATTEMPTS:
                break
            _say(f"port {reserved.port} was taken meanwhile; trying another")
        guard.dismiss()  # not after an exception: then the guard has work to do
        return code

    def _run_once(self, port: int, guard: Guard) -> tuple[int, bool]:
        """Return the exit code, and whether the server ended because a stranger has its port."""
        options = self._options
        argv = command(options, port)
        log_start = _log_size()
        started = time.monotonic()
        try:
            child = subprocess.Popen(
                argv,
                env=self._env,
                start_new_session=True,
                preexec_fn=_die_with_launcher(),  # noqa: PLW1509  # the launcher has no threads
            )
        except OSError as err:
            _say(f"cannot start {argv[0]}: {err.strerror}")
            return 127, False
        guard.tell(child.pid)
        self._publication.write(state="starting", port=port, pid=child.pid, exit_code=None)
        _say(f"{options.name} starts on port {port}, process {child.pid}")
        while child.poll() is None and not self._stop:
            time.sleep(_POLL_S)
        quick = time.monotonic() - started < options.port_conflict_within
        Family(child.pid, self._mark).end(options.grace, reap=child.poll)
        code = child.wait()
        lost = quick and code != 0 and not self._stop and (port_taken(port) or _blames_port(log_start))
        return (128 - code if code < 0 else code), lost


def command(options: argparse.Namespace, port: int) -> list[str]:
    """Return the server's argv with its placeholders filled."""
    host = options.bind or (_LOOPBACK if options.advertise == _LOOPBACK else _ANY)
    words = [word.replace("{port}", str(port)).replace("{host}", host) for word in options.command]
    return [sys.executable if words[0] == "python" else words[0], *words[1:]]


def _log_size() -> int:
    with contextlib.suppress(KeyError, OSError):
        return Path(os.environ["NS_SERVER_LOG"]).stat().st_size
    return 0


def _blames_port(start: int) -> bool:
    """Tell whether what the server has logged since `start` says that its port is taken."""
    time.sleep(0.2)  # the log passes through another process
    with contextlib.suppress(KeyError, OSError), Path(os.environ["NS_SERVER_LOG"]).open("rb") as log:
        log.seek(start)
        return b"address already in use" in log.read().lower()
    return False


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # whoever read our output may be gone
        sys.stderr.write(f"launch: {text}\n")
        sys.stderr.flush()


def parse(args: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="launch", description="Start a model server on a free port.")
    add = parser.add_argument
    add("--name", default="server", help="server type; shown in messages")
    add("--index", type=int, default=0, help="number of this server among the job's servers")
    add("--count", type=int, default=1, help="how many servers the job has")
    add("--model", help="published for clients that were not told a model")
    add("--ready-path", default="/health", help="path that answers 200 once the server is ready")
    add("--advertise", default=_LOOPBACK, help="published host; 'auto': this node's address")
    add("--bind", help="address to listen on; default: all, or loopback if that is published")
    add("--env", action="append", default=[], help="NAME=VALUE for the server, unless set")
    add("--grace", type=float, default=GRACE_S, help="seconds between SIGTERM and SIGKILL")
    add(
        "--port-conflict-within",
        type=float,
        default=300.0,
        help="a server that lost its port and ends within so many seconds is started on another port",
    )
    add("command", nargs="+", help="after --: the server's command, with {host} and {port}")
    words = sys.argv[1:] if args is None else args
    if "--" not in words:
        parser.error("the server's command is missing; it follows --")
    # by hand: versions of argparse differ in what they make of a second --
    cut = words.index("--")
    options = parser.parse_args([*words[:cut], "--", "command"])
    options.command = words[cut + 1 :]
    return options


def main(args: list[str] | None = None) -> int:
    """Launch a server and return its exit code."""
    options = parse(args)
    publication = Publication(options)
    code = 1
    try:
        code = Launcher(options, publication).run()
    except OSError as err:  # a full disk, no more processes; the guard ends what has been started
        _say(f"cannot launch {options.name}: {err}")
    finally:
        with contextlib.suppress(OSError):
            publication.write(state="exited", exit_code=code)
    _say(f"{options.name} ended with exit code {code}")
    return code


if __name__ == "__main__":
    sys.exit(main())
