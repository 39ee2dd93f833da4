"""What Slurm says about jobs: one script that asks, and a pure reading of its answer."""

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from nemo_skills.pipeline.cluster.tunnel import assignments

# Accounting may be off (sacct fails) and ended jobs leave squeue: each source is optional, the files that our
# batch scripts write are the third
QUERY = r"""
squeue -h -u "$(id -un)" -o 'squeue|%A|%T|%M|%r' 2>/dev/null
[[ -n $ids ]] && sacct -X -n -P -j "$ids" -o JobIDRaw,State,Elapsed,ExitCode 2>/dev/null | sed 's/^/sacct|/'
while read -r id file; do
  [[ -f $file ]] && echo "file|$id|$(cat "$file")"
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
    reason: str = ""
    exit_code: str = ""


def query_script(jobs: Mapping[str, str]) -> str:
    """Return the script that asks about jobs: Slurm id to the file in which its batch script left a state."""
    files = "\n".join(f"{job_id} {path}" for job_id, path in jobs.items())
    return assignments(ids=",".join(jobs), state_files=files) + QUERY


def read_answer(answer: str, ids: Iterable[str]) -> dict[str, JobState]:
    """Read what `query_script` printed; every id gets a state."""
    lines = [line.split("|") for line in answer.splitlines() if "|" in line]
    queue = {f[1]: f for f in lines if f[0] == "squeue" and len(f) >= 5}
    accounting = {f[1]: f for f in lines if f[0] == "sacct" and len(f) >= 5}
    files = {f[1]: f[2] for f in lines if f[0] == "file" and len(f) >= 3}
    return {i: _state(queue.get(i), accounting.get(i), files.get(i)) for i in ids}


def _state(queue: list[str] | None, accounting: list[str] | None, left: str | None) -> JobState:
    if queue is not None and queue[2] in ACTIVE:
        reason = "" if queue[4] == "None" else queue[4]
        return JobState(state=queue[2], outcome=Outcome.ACTIVE, elapsed=queue[3], reason=reason)
    if accounting is not None:
        # "CANCELLED by 1000"
        state = accounting[2].split()[0].rstrip("+")
        return JobState(state=state, outcome=_outcome(state), elapsed=accounting[3], exit_code=accounting[4])
    if left is not None:
        outcome = Outcome.SUCCEEDED if left == "succeeded" else Outcome.FAILED
        return JobState(state=left.upper(), outcome=outcome)
    if queue is not None:
        return JobState(state=queue[2], outcome=_outcome(queue[2]), elapsed=queue[3])
    return JobState(state="UNKNOWN", outcome=Outcome.UNKNOWN)


def _outcome(state: str) -> Outcome:
    if state in ACTIVE:
        return Outcome.ACTIVE
    return Outcome.SUCCEEDED if state == "COMPLETED" else Outcome.FAILED
