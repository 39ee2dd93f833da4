"""`--run_after` on Slurm: which jobs of earlier experiments a plan has to wait for."""

from collections.abc import Iterable
from pathlib import PurePosixPath

from nemo_skills.core.errors import UserError
from nemo_skills.pipeline.launch.records import STATE_FILE, JobRecord, Record, history
from nemo_skills.pipeline.launch.slurm_state import JobState, Outcome, query_script, read_answer


def state_file(record: Record, job: JobRecord) -> str:
    """Return the file in which a job's batch script says how it ended."""
    return str(PurePosixPath(record.exp_dir or "") / job.name / STATE_FILE)


class Predecessors:
    """The jobs of the experiments to run after: of each its newest attempt, and of a chain its last part."""

    def __init__(self, expnames: Iterable[str]) -> None:
        self._jobs: dict[str, tuple[Record, JobRecord]] = {}
        for expname in expnames:
            attempts: dict[str, tuple[Record, JobRecord]] = {}
            for record in history(expname):
                if record.executor != "slurm":
                    continue
                continued = {job.continues for job in record.jobs}
                attempts |= {job.log: (record, job) for job in record.jobs if job.name not in continued}
            if not attempts:
                raise UserError(f"--run_after: experiment '{expname}' did not run on Slurm")
            self._jobs |= {job.slurm_id or "": (record, job) for record, job in attempts.values()}

    def query(self) -> str:
        """Return the script that asks Slurm how far they are; empty when there are none."""
        if not self._jobs:
            return ""
        return query_script({job_id: state_file(*pair) for job_id, pair in self._jobs.items()})

    def unfinished(self, answer: str, slurm_cluster: str) -> tuple[str, ...]:
        """Return the ids of those that have not ended, from the answer to the query.

        Raises:
            UserError: one has failed, nobody knows how it ended, or it ran on another cluster.
        """
        states = read_answer(answer, self._jobs)
        for job_id, (record, job) in self._jobs.items():
            if record.slurm_cluster not in (None, slurm_cluster):
                raise UserError(
                    f"--run_after: experiment '{record.expname}' was submitted to the cluster"
                    f" {record.slurm_cluster}, this one goes to {slurm_cluster}"
                )
            if states[job_id].outcome in (Outcome.FAILED, Outcome.UNKNOWN):
                raise UserError(_trouble(record, job, states[job_id]))
        return tuple(i for i in self._jobs if states[i].outcome is Outcome.ACTIVE)


def _trouble(record: Record, job: JobRecord, state: JobState) -> str:
    which = f"--run_after: job {job.name} ({job.slurm_id}) of experiment '{record.expname}'"
    if state.outcome is Outcome.UNKNOWN:
        return f"{which}: nobody knows any more how it ended; its log: {job.log}"
    reason = f" ({state.reason})" if state.reason else ""
    return f"{which} has not succeeded, it is {state.state}{reason}; its log: {job.log}"
