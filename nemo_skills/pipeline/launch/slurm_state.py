"""What Slurm says about jobs: one script that asks, and a pure reading of its answer."""

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from nemo_skills.pipeline.cluster.tunnel import assignments

# Accounting may be off (sacct fails) and ended jobs leave squeue: each source is optional, the files that our
# batch scripts write are the third
QUERY = r"""
said=$(squeue -h -t all -u "$(id -un)" -o 'squeue|%A|%T|%M|%r' 2>&1) || echo "problem|${said##*$'\n'}"
printf '%s\n' "$said"
[[ -n $ids ]] && sacct -X -n -P -j "$ids" -o JobIDRaw,State,Elapsed,ExitCode 2>/dev/null | sed 's/^/sacct|/'
while read -r id file; do
  [[ -f $file ]] && echo "file|$id|$(cat "$file")|$(cat "${file%/*}/ended" 2>/dev/null)"
done <<< "$state_files"
true
"""

ACTIVE = frozenset(
    {
        *("PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "RESIZING", "SIGNALING", "STOPPED"),
        *("STAGE_OUT", "SPECIAL_EXIT", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD"),
    }
)


class Outcome(enum.Enum):
    """How far a job is."""

    ACTIVE = "active"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True)
class JobState:
    """What is known about one job."""

    state: str
    """Slurm's word for it, such as `RUNNING` or `TIMEOUT`."""
    outcome: Outcome
    elapsed: str = ""
    """How long it has run, as `1-02:03:04` or `2:03:04`; empty when unknown."""
    reason: str = ""
    """Why it waits, or what its state does not say."""
    exit_code: int | None = None


def query_script(jobs: Mapping[str, str]) -> str:
    """Return the script that asks about jobs: Slurm id to the file in which its batch script left a state."""
    files = "\n".join(f"{job_id} {path}" for job_id, path in jobs.items())
    return assignments(ids=",".join(jobs), state_files=files) + QUERY


def read_answer(answer: str, ids: Iterable[str]) -> dict[str, JobState]:
    """Read what `query_script` printed; every id gets a state."""
    lines = [line.split("|") for line in answer.splitlines() if "|" in line]
    queue = {f[1]: f for f in lines if f[0] == "squeue" and len(f) >= 5}
    accounting = {f[1]: f for f in lines if f[0] == "sacct" and len(f) >= 5}
    files = {f[1]: (f[2], f[3]) for f in lines if f[0] == "file" and len(f) >= 4}
    if not read_problem(answer):
        # accounting may lag behind, or miss an end; the queue knows what still runs
        accounting = {i: f for i, f in accounting.items() if _accounted(f) not in ACTIVE}
    states = {i: _state(queue.get(i), accounting.get(i), files.get(i)) for i in ids}
    if read_problem(answer):
        # a job that has left no more than a start may well be running
        states = {i: _UNKNOWN if s in (_LOST, _NEVER_STARTED) else s for i, s in states.items()}
    return states


def read_problem(answer: str) -> str:
    """Return why Slurm's controller gave no answer; empty when it gave one."""
    found = [line for line in answer.splitlines() if line.startswith("problem|")]
    return found[0].partition("|")[2] if found else ""


def duration(seconds: float) -> str:
    """Return a duration as `1-02:03:04`, or `2:03:04` where it is less than a day."""
    days, rest = divmod(int(seconds), 86400)
    hours, minutes = divmod(rest // 60, 60)
    clock = f"{minutes:02d}:{rest % 60:02d}"
    return f"{days}-{hours:02d}:{clock}" if days else f"{hours}:{clock}"


def left_behind(state: str, ended: str) -> JobState:
    """Return what the files that a job leaves in its folder say: a word, and its exit code and seconds."""
    code, _, seconds = ended.partition(" ")
    outcome = Outcome.SUCCEEDED if state == "succeeded" else Outcome.FAILED
    return JobState(
        state=_WORDS.get(state, state.upper()),
        outcome=outcome,
        elapsed=duration(int(seconds)) if seconds.isdigit() else "",
        exit_code=int(code) if code.isdigit() else None,
    )


def _state(queue: list[str] | None, accounting: list[str] | None, left: tuple[str, str] | None) -> JobState:
    if queue is not None and queue[2] in ACTIVE:
        reason = "" if queue[4] == "None" else queue[4]
        return JobState(state=queue[2], outcome=Outcome.ACTIVE, elapsed=_elapsed(queue[3]), reason=reason)
    if accounting is not None:
        state = _accounted(accounting)
        # our script stops a job in good time before its limit, which to Slurm is a failure like any other
        near_limit = left is not None and left[0] == "timeout" and state == "FAILED"
        return JobState(
            state=state,
            outcome=_outcome(state),
            elapsed=_elapsed(accounting[3]),
            reason="stopped before its time limit" if near_limit else "",
            exit_code=_exit_code(accounting[4]),
        )
    if queue is not None:
        code = left_behind(*left).exit_code if left else None
        elapsed = _elapsed(queue[3])
        return JobState(state=queue[2], outcome=_outcome(queue[2]), elapsed=elapsed, exit_code=code)
    if left is not None and left[0] not in ("queued", "running"):
        return left_behind(*left)
    if left is not None:
        return _LOST if left[0] == "running" else _NEVER_STARTED
    return _UNKNOWN


_LOST = JobState(state="LOST", outcome=Outcome.FAILED, reason="it ended without a word")
_NEVER_STARTED = JobState(
    state="NOT_STARTED", outcome=Outcome.FAILED, reason="it left the queue without a start"
)
_UNKNOWN = JobState(state="UNKNOWN", outcome=Outcome.UNKNOWN)
_WORDS = {"succeeded": "COMPLETED"}


def _accounted(fields: list[str]) -> str:
    return fields[2].split()[0].rstrip("+")  # "CANCELLED by 1000"


def _outcome(state: str) -> Outcome:
    if state in ACTIVE:
        return Outcome.ACTIVE
    return Outcome.SUCCEEDED if state == "COMPLETED" else Outcome.FAILED


def _elapsed(text: str) -> str:
    """Read Slurm's `[days-][hours:]minutes:seconds`."""
    days, _, clock = text.rpartition("-")
    parts = clock.split(":")
    if not all(part.isdigit() for part in (days or "0", *parts)):
        return ""
    seconds = 0
    for part in parts:
        seconds = seconds * 60 + int(part)
    return duration(int(days or 0) * 86400 + seconds)


def _exit_code(text: str) -> int | None:
    """Read Slurm's `code:signal`."""
    code, _, signal = text.partition(":")
    if not (code.isdigit() and signal.isdigit()):
        return None
    return 128 + int(signal) if int(signal) else int(code)
