"""Starts one model server on a free port of this node and says where it is.

Needs nothing but the standard library of Python 3.8, and runs by file path in any container:

    python launch.py --name vllm --index 0 --ready-path /health -- python -m … --host {host} --port {port}

`$NS_RUN_DIR/server-<index>.json` tells clients the address and, later, that the server has ended; with
`--kind sandbox` the file is `sandbox-<index>.json`. The server ends with the launcher, however the launcher
ends, and takes all its children with it.

A server that spans nodes has a launcher in each of its Slurm tasks (`--tasks`). The first one answers
requests and says in `$NS_RUN_DIR/head-<index>.json` where the others find it; when one ends, all fail.

Placeholders: `{host}` to listen on, `{port}`, `{address}` of this node, `{head}` and `{head_port}` where the
processes of a server meet, `{node_rank}`, `{python}`.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Collection, Mapping
from pathlib import Path

if __name__ == "__main__":  # run by its path: this package need not be installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from nemo_skills.inference.server.announce import Meeting, Publication
from nemo_skills.inference.server.family import POLL_S, Family, Guard, Stop, die_with_launcher

PORTS = range(20000, 32000)
"""Below Linux's range for outgoing connections, which would take a port between our probe and the server."""
GRACE_S = 8.0
"""Between SIGTERM and SIGKILL; less than the 10 seconds after which job supervisors kill the launcher."""
_ATTEMPTS = 5
_MEETING_POLL_S = 0.2
_KILLED = 128 + signal.SIGKILL
_LOOPBACK = "127.0.0.1"
_ANY = "0.0.0.0"  # noqa: S104


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


class Launcher:
    """Runs the server, or this process's part of it, until it ends or somebody asks for the end."""

    def __init__(self, options: argparse.Namespace, publication: Publication, host: str) -> None:
        launch_id = uuid.uuid4().hex
        self._options = options
        self._publication = publication
        self._host = host
        self._rank = rank_of(options)
        self._together = options.tasks > 1
        self._reserved_to_meet: Reservation | None = None
        self._stop = Stop()
        self._mark = f"NS_LAUNCH_ID={launch_id}".encode()
        self._env = dict(os.environ, NS_LAUNCH_ID=launch_id)
        gpus = own_gpus(options, os.environ.get("CUDA_VISIBLE_DEVICES"))
        if gpus is not None:
            self._env["CUDA_VISIBLE_DEVICES"] = gpus

    def run(self) -> int:
        """Return the server's exit code."""
        guard = Guard(self._mark, lambda: self._publication.write(state="exited", exit_code=_KILLED))
        meeting = self._meet() if self._together else Meeting(self._host, 0)
        code = self._run_on_some_port(guard, meeting) if meeting else 1
        guard.dismiss()  # not after an exception: then the guard has work to do
        # the others cannot go on alone, and Slurm ends them only when this process fails
        return code or int(self._together and not self._stop)

    def _meet(self) -> Meeting | None:
        """Find out where the processes of this server meet; None when asked to end meanwhile."""
        if self._rank == 0:
            self._reserved_to_meet = Reservation()
            meeting = Meeting(self._host, self._reserved_to_meet.port)
            meeting.announce(self._options.index)
            return meeting
        return Meeting.await_announced(self._options.index, self._pause)

    def _pause(self) -> bool:
        time.sleep(_MEETING_POLL_S)
        return not self._stop

    def _run_on_some_port(self, guard: Guard, meeting: Meeting) -> int:
        tried: list[int] = []
        while True:
            reserved = Reservation(tried)
            tried.append(reserved.port)
            code, lost_port = self._run_once(reserved.port, meeting, guard)
            reserved.release()
            # one process that starts anew would not find the others as it left them
            if not lost_port or self._stop or self._together or len(tried) == _ATTEMPTS:
                return code
            _say(f"port {reserved.port} was taken meanwhile; trying another")

    def _run_once(self, port: int, meeting: Meeting, guard: Guard) -> tuple[int, bool]:
        """Return the exit code, and whether the server ended because a stranger has its port."""
        options = self._options
        values = placeholders(options, port, self._host, meeting)
        argv = command(options, values)
        log_start = _log_size()
        started = time.monotonic()
        try:
            child = subprocess.Popen(
                argv,
                env={**environment(options, values), **self._env},
                start_new_session=True,
                preexec_fn=die_with_launcher(),  # noqa: PLW1509  # the launcher has no threads
            )
        except OSError as err:
            _say(f"cannot start {argv[0]}: {err.strerror}")
            return 127, False
        guard.tell(child.pid)
        self._publication.write(state="starting", port=port, pid=child.pid, exit_code=None)
        _say(f"{title(options)} starts on port {port}, process {child.pid}")
        while child.poll() is None and not self._stop:
            time.sleep(POLL_S)
        quick = time.monotonic() - started < options.port_conflict_within
        Family(child.pid, self._mark).end(options.grace, reap=child.poll)
        code = child.wait()
        lost = quick and code != 0 and not self._stop and (port_taken(port) or _blames_port(log_start))
        return (128 - code if code < 0 else code), lost


def title(options: argparse.Namespace) -> str:
    """Return what messages call this process."""
    part = f" (process {rank_of(options)} of {options.tasks})" if options.tasks > 1 else ""
    return f"{options.name}{part}"


def rank_of(options: argparse.Namespace) -> int:
    """Return which of the server's processes this is; Slurm numbers them node after node."""
    return int(os.environ.get("SLURM_PROCID", "0")) if options.tasks > 1 else 0


def own_gpus(options: argparse.Namespace, visible: str | None) -> str | None:
    """Return this server's share of the GPUs that it and the job's other servers see; None: all."""
    if options.count == 1 or not options.gpus:
        return None
    wanted = options.count * options.gpus
    devices = [str(n) for n in range(wanted)] if visible is None else [d for d in visible.split(",") if d]
    if len(devices) == options.gpus:  # a container that has been given its own
        return None
    if len(devices) < wanted:
        sys.exit(f"launch: the servers need {wanted} GPUs, but CUDA_VISIBLE_DEVICES is '{visible}'")
    first = options.index * options.gpus
    return ",".join(devices[first : first + options.gpus])


def placeholders(options: argparse.Namespace, port: int, host: str, meeting: Meeting) -> dict[str, str]:
    """Return what stands for the placeholders of commands and variables."""
    bind = options.bind or (_LOOPBACK if options.advertise == _LOOPBACK else _ANY)
    return {
        "host": bind,
        "port": str(port),
        "python": sys.executable,
        "address": host,
        "head": meeting.host,
        "head_port": str(meeting.port),
        "node_rank": str(rank_of(options)),
    }


def fill(text: str, values: Mapping[str, str]) -> str:
    """Replace `{name}` by its value; other braces stay."""
    return re.sub(r"\{(\w+)\}", lambda found: values.get(found[1], found[0]), text)


def command(options: argparse.Namespace, values: Mapping[str, str]) -> list[str]:
    """Return the argv of this process with its placeholders filled."""
    words = options.worker if options.worker and rank_of(options) else options.command
    program = sys.executable if words[0] == "python" else fill(words[0], values)
    return [program, *(fill(word, values) for word in words[1:])]


def environment(options: argparse.Namespace, values: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that the server gets where the job does not set them."""
    pairs = (pair.partition("=") for pair in options.env)
    return {name: fill(value, values) for name, _, value in pairs}


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
    add("--kind", default="server", help="first word of the file in the run folder that tells of it")
    add("--index", type=int, default=0, help="number of this server among the job's servers")
    add("--count", type=int, default=1, help="how many servers the job has")
    add("--model", help="published for clients that were not told a model")
    add("--ready-path", default="/health", help="path that answers 200 once the server is ready")
    add("--advertise", default=_LOOPBACK, help="published host; 'auto': this node's address")
    add("--bind", help="address to listen on; default: all, or loopback if that is published")
    add("--env", action="append", default=[], help="NAME=VALUE for the server, unless set")
    add("--gpus", type=int, default=0, help="GPUs of each of --count servers that share those they see")
    add("--tasks", type=int, default=1, help="how many processes Slurm starts together for this server")
    add("--worker", type=json.loads, help="JSON list: the command of all those processes but the first")
    add("--grace", type=float, default=GRACE_S, help="seconds between SIGTERM and SIGKILL")
    add(
        "--port-conflict-within",
        type=float,
        default=300.0,
        help="a server that lost its port and ends within so many seconds is started on another port",
    )
    add("command", nargs="+", help="after --: the server's command, with {placeholders}")
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
    host = advertised_host(options.advertise)
    publication = Publication(options, host, rank=rank_of(options))
    code = 1
    try:
        code = Launcher(options, publication, host).run()
    except OSError as err:  # a full disk, no more processes; the guard ends what has been started
        _say(f"cannot launch {title(options)}: {err}")
    finally:
        with contextlib.suppress(OSError):
            publication.write(state="exited", exit_code=code)
    _say(f"{title(options)} ended with exit code {code}")
    return code


if __name__ == "__main__":
    sys.exit(main())
