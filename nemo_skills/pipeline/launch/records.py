"""What was launched under which experiment name, and how it ended. One JSON file per experiment."""

import dataclasses
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

from nemo_skills.core.errors import UserError, did_you_mean

RUNNING, SUCCEEDED, FAILED, SUBMITTED = "running", "succeeded", "failed", "submitted"


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """One job of an experiment."""

    name: str
    log: str
    """Log of its main, as a path where the job ran."""
    slurm_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class Record:
    """One experiment as it was launched."""

    expname: str
    id: str
    cluster: str
    """Name or path by which `--cluster` found the config."""
    executor: str
    log_dir: str
    state: str
    """Of experiments that the wrapper waits for; `submitted` where Slurm knows more."""
    jobs: tuple[JobRecord, ...]
    exp_dir: str | None = None
    """The experiment's folder on a cluster."""
    code_dir: str | None = None
    """The packaged code on a cluster."""

    @property
    def folder(self) -> Path:
        """NeMo-Run's folder of this experiment on the workstation."""
        return nemorun_home() / "experiments" / self.expname / self.id

    def save(self) -> None:
        """Write the record atomically."""
        path = _records_dir() / self.expname / f"{self.id}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(dataclasses.asdict(self), indent=1), encoding="utf-8")
        temporary.replace(path)


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
    paths = sorted((_records_dir() / expname).glob("*.json"))
    if not paths:
        known = sorted(p.name for p in _records_dir().glob("*"))
        raise UserError(
            f"no experiment '{expname}' was launched from this machine.{did_you_mean(expname, known)}"
        )
    raw = json.loads(paths[-1].read_text(encoding="utf-8"))
    return Record(**(raw | {"jobs": tuple(JobRecord(**job) for job in raw["jobs"])}))


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


def _records_dir() -> Path:
    return nemorun_home() / "ns_records"
