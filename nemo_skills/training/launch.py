"""Starts the processes of a training run on one node, with the variables that torchrun sets.

    python -m nemo_skills.training.launch --processes 8 --nodes 2 -- -m nemo_skills.training.start_sft …

On several nodes Slurm starts it once on each. Unlike torchrun it hands on the exit code of the program, which
says whether the run has to be continued, and leaves a program that was asked to end the time to save.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from nemo_skills.core.log import get_logger, setup_logging
from nemo_skills.inference.server.announce import Meeting, run_folder, write_json
from nemo_skills.inference.server.family import POLL_S, die_with_launcher
from nemo_skills.inference.server.launch import Reservation, advertised_host

LOG = get_logger(__name__)

_MEETING_POLL_S = 0.2
_LOOPBACK = "127.0.0.1"
STOPPED_CODE = 3
"""With which a program says that it has saved and has to be continued."""
_AGREEMENT_S = 120.0
"""What they have once one has ended well, or has stopped after saving: all do so together."""
_EXIT_S = 1.0
"""What a process may need to end after it has said that it does."""


class Launcher:
    """The processes of this node; the first failure is the result."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._node = int(os.environ.get("SLURM_PROCID", "0")) if options.nodes > 1 else 0
        self._children: list[subprocess.Popen[bytes]] = []
        self._asked: int | None = None
        self._parent = os.getppid()
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(signum, self._on_signal)

    def run(self) -> int:
        """Return the exit code of the program."""
        reserved = Reservation() if self._node == 0 else None
        meeting = self._meet(reserved)
        if meeting is None:
            return 128 + signal.SIGTERM
        for local_rank in range(self._options.processes):
            self._children.append(
                subprocess.Popen(
                    [sys.executable, *self._options.command],
                    env={**os.environ, **self._variables(meeting, local_rank)},
                    preexec_fn=die_with_launcher(),  # noqa: PLW1509  # the launcher has no threads
                )
            )
        if self._asked is not None:  # while they were being started
            self._on_signal(self._asked, None)
        try:
            return self._agree(self._wait())
        finally:
            for child in self._children:
                child.kill()
                child.wait()

    def _agree(self, code: int) -> int:
        """Let the first node alone say that the run is to be continued, when the others have ended.

        Slurm takes such a code for a failure and would kill those that are still about to end.
        """
        folder = run_folder()
        if code != STOPPED_CODE or folder is None or self._options.nodes == 1:
            return code
        if self._node:
            write_json(folder / f"stopped-{self._node}.json", {"exit_code": code})
            return 0
        others = [folder / f"stopped-{node}.json" for node in range(1, self._options.nodes)]
        deadline = time.monotonic() + _AGREEMENT_S
        while not all(path.exists() for path in others) and time.monotonic() < deadline:
            time.sleep(_MEETING_POLL_S)
        time.sleep(_EXIT_S)
        return code

    def _meet(self, reserved: Reservation | None) -> Meeting | None:
        if self._options.nodes == 1:
            assert reserved is not None
            return Meeting(_LOOPBACK, reserved.port)
        if reserved is None:
            return Meeting.await_announced(0, self._pause)
        meeting = Meeting(advertised_host("auto"), reserved.port)
        meeting.announce(0)
        return meeting

    def _pause(self) -> bool:
        time.sleep(_MEETING_POLL_S)
        return self._asked is None

    def _variables(self, meeting: Meeting, local_rank: int) -> dict[str, str]:
        each = self._options.processes
        threads = os.environ.get("OMP_NUM_THREADS") or max(1, len(os.sched_getaffinity(0)) // each)
        values: dict[str, object] = {
            "RANK": self._node * each + local_rank,
            "LOCAL_RANK": local_rank,
            "GROUP_RANK": self._node,
            "WORLD_SIZE": self._options.nodes * each,
            "LOCAL_WORLD_SIZE": each,
            "MASTER_ADDR": meeting.host,
            "MASTER_PORT": meeting.port,
            "OMP_NUM_THREADS": threads,
        }
        return {name: str(value) for name, value in values.items()}

    def _on_signal(self, signum: int, _frame: object) -> None:
        self._asked = signum
        for child in self._children:
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)

    def _wait(self) -> int:
        """Wait for all processes; after the first end the others have a while to follow."""
        deadline = float("inf")
        result = 0
        while None in [child.poll() for child in self._children]:
            if os.getppid() != self._parent:
                LOG.error("the process that started this one is gone: ending the training")
                return 128 + signal.SIGTERM
            ended = [child.returncode for child in self._children if child.returncode is not None]
            failed = [code for code in ended if code not in (0, STOPPED_CODE)]
            result = result or next(iter(failed), 0)
            if ended:
                deadline = min(
                    deadline, time.monotonic() + (self._options.farewell if failed else _AGREEMENT_S)
                )
            if time.monotonic() > deadline:
                LOG.error("not all processes have ended with the first one: killing the others")
                return _as_exit_code(result or 1)
            time.sleep(POLL_S)
        codes = [child.returncode for child in self._children]
        failed = [code for code in codes if code not in (0, STOPPED_CODE)]
        return _as_exit_code(result or next(iter(failed), max(codes)))


def _as_exit_code(code: int) -> int:
    return 128 - code if code < 0 else code


def parse(args: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; the program follows `--`."""
    parser = argparse.ArgumentParser(prog="launch", description="Start the processes of a training run.")
    parser.add_argument("--processes", type=int, default=1, help="processes on each node")
    parser.add_argument("--nodes", type=int, default=1, help="nodes, on each of which Slurm starts this")
    parser.add_argument(
        "--farewell", type=float, default=8.0, help="seconds that others have to end after one has failed"
    )
    parser.add_argument("command", nargs="+", help="after --: arguments of Python")
    return parser.parse_args(args)


if __name__ == "__main__":
    setup_logging()
    sys.exit(Launcher(parse(sys.argv[1:])).run())
