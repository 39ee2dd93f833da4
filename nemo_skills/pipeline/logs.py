"""`ns logs`: what the jobs of an experiment print."""

import base64
import shlex
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from nemo_skills.core.errors import UserError, did_you_mean
from nemo_skills.core.log import get_logger
from nemo_skills.pipeline.cluster.tunnel import LocalTunnel, ShellTunnel
from nemo_skills.pipeline.launch.experiments import (
    JobStatus,
    attempts_in_one_place,
    choose,
    cluster_of,
    current,
    local_statuses,
    read_statuses,
    status_script,
)
from nemo_skills.pipeline.launch.records import JobRecord, Record
from nemo_skills.pipeline.launch.slurm import open_tunnel
from nemo_skills.pipeline.options import ExperimentOptions, LogOptions, WhereOptions
from nemo_skills.pipeline.wrapper import wrapper

LOG = get_logger(__name__)

POLL_S = 1.0
"""How often a log is read while it is followed."""
ASK_EVERY_S = 5.0
"""How often Slurm is asked whether the jobs still run, while they print nothing."""
_AT_ONCE = 4 << 20
"""The most bytes of one log in one answer."""

# Offsets count bytes; a negative one stands for the last lines. The data is packed as it may hold anything.
_LOOK = r"""
look() {
  local index=$1 offset=$2 path=$3 size
  [[ -f $path ]] || return 0
  size=$(wc -c < "$path")
  ((offset < 0)) && offset=$((size - $(tail -n "$((-offset))" -- "$path" | head -c "$size" | wc -c)))
  ((offset < 0 || size < offset)) && offset=0
  ((size - offset > at_once)) && size=$((offset + at_once))
  printf 'log|%s|%s|' "$index" "$offset"
  tail -c "+$((offset + 1))" -- "$path" | head -c "$((size - offset))" | base64 | tr -d '\n'
  echo
}
"""


@dataclass
class LogFile:
    """One log, and how far it has been read."""

    job: str
    path: str
    offset: int
    found: bool = False
    skipped: int = 0
    """Bytes before the first that was read."""
    pending: bytes = field(default=b"", repr=False)
    """The start of a line whose rest has not come yet."""

    def take(self, start: int, data: bytes) -> bytes:
        """Take what came from byte `start` on; returns whole lines."""
        if not self.found:
            self.found, self.skipped = True, start
        elif start != self.offset:
            self.pending = b""  # the file was replaced by a shorter one
        self.offset = start + len(data)
        lines, newline, self.pending = (self.pending + data).rpartition(b"\n")
        return lines + newline


@wrapper()
def logs(own: ExperimentOptions, where: WhereOptions, which: LogOptions) -> None:
    """Print the logs of some experiments, or of the one launched last.

    Where there are several logs, it names each one when it turns to it.
    """
    names = choose(own.expnames, where)
    if not names:
        raise UserError("no experiment was launched from this machine")
    if not own.expnames:
        names = names[-1:]
        LOG.info("the logs of '%s', which was launched last", names[0])
    for name in names:
        records = attempts_in_one_place(name)
        _Reader(records, which, titled=len(names) > 1).show(where, follow=which.follow)


class _Reader:
    """Prints the logs of one experiment."""

    def __init__(self, records: Sequence[Record], which: LogOptions, *, titled: bool) -> None:
        self._records = records
        self._on_slurm = records[-1].executor == "slurm"
        jobs = {job.log: job for record in records for job in record.jobs}
        start = -which.lines if which.lines else 0
        self._files = [LogFile(name, path, start) for name, path in log_paths(jobs.values(), which)]
        self._titled = titled or len(self._files) > 1
        self._shown: LogFile | None = None

    def show(self, where: WhereOptions, *, follow: bool) -> None:
        """Print what there is, and with `follow` what comes."""
        tunnel = open_tunnel(cluster_of(self._records[-1], where)) if self._on_slurm else LocalTunnel()
        states, more = self._poll(tunnel, ask=True)
        self._note_what_is_missing(states)
        asked = time.monotonic()
        while more or (follow and any(one.active for one in states)):
            if not more:
                time.sleep(POLL_S)
            ask = not self._on_slurm or (not more and time.monotonic() - asked >= ASK_EVERY_S)
            new_states, more = self._poll(tunnel, ask=ask)
            if ask:
                states, asked = new_states, time.monotonic()
        for file in self._files:
            if file.pending:
                self._print(file, file.pending + b"\n")

    def _poll(self, tunnel: ShellTunnel, *, ask: bool) -> tuple[list[JobStatus], bool]:
        """Print what is new; returns the jobs' states, if asked for, and whether something new was there."""
        # states first: what a job prints before it ends is then read after it
        states = local_statuses(self._records) if ask and not self._on_slurm else []
        script = status_script(self._records) if ask and self._on_slurm else ""
        looks = (f"look {i} {file.offset} {shlex.quote(file.path)}\n" for i, file in enumerate(self._files))
        answer = tunnel.run(f"{script}at_once={_AT_ONCE}\n{_LOOK}{''.join(looks)}true\n").stdout
        if ask and self._on_slurm:
            states = read_statuses(self._records, answer)
        more = False
        for _, index, start, packed in (
            line.split("|") for line in answer.splitlines() if line.startswith("log|")
        ):
            file, data = self._files[int(index)], base64.b64decode(packed)
            more |= bool(data)
            self._print(file, file.take(int(start), data))
        names = {file.job for file in self._files}
        return [one for one in current(states) if one.job.name in names], more

    def _print(self, file: LogFile, data: bytes) -> None:
        if not data:
            return
        if self._titled and self._shown is not file:
            between = b"\n" if self._shown else b""
            sys.stdout.buffer.write(between + f"==> {file.path} <==\n".encode())
            self._shown = file
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()

    def _note_what_is_missing(self, states: Iterable[JobStatus]) -> None:
        by_name = {one.job.name: one.state for one in states}
        for file in self._files:
            if not file.found:
                state = by_name[file.job]
                reason = ", ".join(filter(None, (state.state, state.reason)))
                LOG.warning("job %s has no log yet (%s): %s", file.job, reason, file.path)
            elif file.skipped:
                LOG.warning("the last lines of %s; --lines=0 shows all", file.path)


def log_paths(jobs: Iterable[JobRecord], which: LogOptions) -> list[tuple[str, str]]:
    """Return names of jobs and the logs of their mains, or of another component, of those that have it.

    Raises:
        UserError: there is no such job or component.
    """
    jobs = list(jobs)
    if which.job:
        names = [job.name for job in jobs]
        jobs = [job for job in jobs if job.name == which.job]
        if not jobs:
            hint = did_you_mean(which.job, names)
            raise UserError(f"there is no job '{which.job}'.{hint} There are: {', '.join(names)}")
    if not which.component:
        return [(job.name, job.log) for job in jobs]
    found = [(job.name, job.logs[which.component]) for job in jobs if which.component in job.logs]
    if not found:
        known = sorted({name for job in jobs for name in job.logs})
        hint = did_you_mean(which.component, known)
        raise UserError(f"there is no log of '{which.component}'.{hint} There are: {', '.join(known)}")
    return found
