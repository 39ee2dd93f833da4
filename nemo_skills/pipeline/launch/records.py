"""What was launched under which experiment name, and how it ended. One JSON file per experiment."""

import dataclasses
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nemo_skills.core.errors import UserError, did_you_mean
from nemo_skills.pipeline.launch.layout import host_path
from nemo_skills.pipeline.launch.owner import this_process
from nemo_skills.pipeline.launch.plan import Job, Plan

RUNNING, SUCCEEDED, FAILED, CANCELLED = "running", "succeeded", "failed", "cancelled"
SUBMITTED = "submitted"
UNFINISHED = "timeout"
"""Of a job that ran out of time, or said that it has to be continued."""
STATE_FILE = "state"
"""In the folder of a job: a word for how far it is."""
ENDED_FILE = "ended"
"""Beside it, once the job has ended: its exit code, and how many seconds it ran."""
BATCH_LOG = "sbatch"
"""What the log of a Slurm batch script is called among the logs of a job's components."""


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """One job of an experiment."""

    name: str
    log: str
    """Log of its main, as a path where the job ran."""
    slurm_id: str | None = None
    logs: Mapping[str, str] = field(default_factory=dict)
    """Component to its log."""
    continues: str | None = None
    """Name of the job that it continues if that ran out of time."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One experiment as it was launched."""

    expname: str
    id: str
    cluster: str
    """Name of the cluster config."""
    executor: str
    log_dir: str
    state: str
    """Of experiments that the wrapper waits for; `submitted` where Slurm knows more."""
    jobs: tuple[JobRecord, ...]
    exp_dir: str | None = None
    """The experiment's folder, where its jobs run: it has a folder for each of them."""
    code_dir: str | None = None
    """The packaged code on a cluster."""
    config: str | None = None
    """Path of the cluster config; None where there was none."""
    owner: str = ""
    """Mark of the process that waits for the experiment, or submitted it."""
    slurm_cluster: str | None = None
    """Name by which the Slurm cluster calls itself."""

    @classmethod
    def of(
        cls, plan: Plan, experiment_id: str, *, state: str, slurm_ids: Mapping[str, str] | None = None
    ) -> "Record":
        """Return the record of a plan that this process launches; `slurm_ids` are those of its jobs."""
        return cls(
            expname=plan.expname,
            id=experiment_id,
            cluster=plan.cluster.name,
            executor=plan.cluster.executor,
            log_dir=_log_path(plan, plan.log_dir),
            state=state,
            jobs=tuple(_job_record(plan, job, (slurm_ids or {}).get(job.name)) for job in plan.jobs),
            config=plan.cluster.path,
            owner=this_process(),
        )

    @property
    def folder(self) -> Path:
        """NeMo-Run's folder of this experiment on the workstation."""
        return nemorun_home() / "experiments" / self.expname / self.id

    @property
    def file(self) -> Path:
        """Where the record itself is kept."""
        return _records_dir() / self.expname / f"{self.id}.json"

    def save(self) -> None:
        """Write the record atomically.

        Raises:
            UserError: the folder cannot be written.
        """
        path = self.file
        temporary = path.with_suffix(".tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(dataclasses.asdict(self), indent=1), encoding="utf-8")
            temporary.replace(path)
        except OSError as err:
            raise UserError(
                f"cannot keep the record of experiment '{self.expname}' in {path.parent}: {err.strerror};"
                " NEMORUN_HOME names another folder"
            ) from err


def nemorun_home() -> Path:
    """Return the folder in which NeMo-Run keeps everything."""
    return Path(os.environ.get("NEMORUN_HOME") or Path.home() / ".nemo_run")


def new_id(expname: str) -> str:
    """Return a fresh experiment id in NeMo-Run's form."""
    return f"{expname}_{time.time_ns()}"


def all_latest() -> list[Record]:
    """Return the newest record of every experiment name, the newest last."""
    names = [folder.name for folder in _records_dir().glob("*") if folder.is_dir()]
    return sorted((latest(name) for name in names), key=lambda r: r.id.rpartition("_")[2])


def latest(expname: str) -> Record:
    """Return the newest record of an experiment name.

    Raises:
        UserError: nothing was launched under that name from this machine.
    """
    return history(expname)[-1]


def history(expname: str) -> list[Record]:
    """Return all records of an experiment name, the newest last.

    Raises:
        UserError: nothing was launched under that name from this machine.
    """
    paths = sorted((_records_dir() / expname).glob("*.json"))
    if not paths:
        known = sorted(p.name for p in _records_dir().glob("*"))
        raise UserError(
            f"no experiment '{expname}' was launched from this machine.{did_you_mean(expname, known)}"
        )
    return [_read(path) for path in paths]


def all_records() -> Iterator[Record]:
    """Return the record of everything that was launched from this machine."""
    return map(_read, sorted(_records_dir().glob("*/*.json")))


def require_success(expnames: tuple[str, ...]) -> None:
    """Check that experiments which ran on this machine ended well.

    Raises:
        UserError: one is unknown, failed or still running.
    """
    for expname in expnames:
        record = latest(expname)
        if record.state != SUCCEEDED:
            raise UserError(
                f"--run_after: experiment '{expname}' has not succeeded (state: {record.state});"
                f" logs: {record.log_dir}"
            )


def _job_record(plan: Plan, job: Job, slurm_id: str | None) -> JobRecord:
    logs = {c.name: _log_path(plan, plan.log_path(job, c)) for c in job.components}
    if slurm_id is not None:
        logs[BATCH_LOG] = _log_path(plan, plan.batch_log_path(job))
    return JobRecord(
        name=job.name, log=logs[job.main.name], slurm_id=slurm_id, logs=logs, continues=job.continues
    )


def _log_path(plan: Plan, path: str) -> str:
    on_host = host_path(plan.cluster, path)
    # who asks for a log later may stand in another folder
    return on_host if plan.cluster.executor == "slurm" else str(Path(on_host).absolute())


def _read(path: Path) -> Record:
    raw = json.loads(path.read_text(encoding="utf-8"))
    return Record(**(raw | {"jobs": tuple(JobRecord(**job) for job in raw["jobs"])}))


def _records_dir() -> Path:
    return nemorun_home() / "ns_records"
