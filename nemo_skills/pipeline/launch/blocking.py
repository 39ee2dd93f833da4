"""Runs jobs while the wrapper waits, one after the other, as a NeMo-Run experiment."""

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nemo_skills.pipeline.launch.layout import host_path
from nemo_skills.pipeline.launch.plan import Plan
from nemo_skills.pipeline.launch.records import (
    FAILED,
    RUNNING,
    SUCCEEDED,
    JobRecord,
    Record,
    new_id,
    require_success,
)
from nemo_skills.pipeline.launch.supervise import Process, run_job, terminal_env


@dataclass(frozen=True, kw_only=True)
class LocalProcess:
    """One component as a script of this machine."""

    name: str
    script: str
    log: str
    is_main: bool


@dataclass(frozen=True, kw_only=True)
class LocalJob:
    """One job as processes of this machine; plain values only, as NeMo-Run keeps it in its metadata."""

    name: str
    processes: tuple[LocalProcess, ...]
    run_dir: str
    """A fresh folder of this run of the job; marks its processes as such."""
    secrets: str | None = None
    """File that is removed as soon as the job has ended."""
    clean_up: tuple[str, ...] = ()
    """Command that ends what a killed process may leave behind."""


def new_record(plan: Plan) -> Record:
    """Return the record of an experiment that is about to start.

    Raises:
        UserError: an experiment of `run_after` has not succeeded.
    """
    require_success(plan.options.run_after)
    return Record(
        expname=plan.expname,
        id=new_id(plan.expname),
        cluster=plan.cluster.name,
        executor=plan.cluster.executor,
        log_dir=host_path(plan.cluster, plan.log_dir),
        state=RUNNING,
        jobs=tuple(
            JobRecord(name=job.name, log=host_path(plan.cluster, plan.log_path(job, job.main)))
            for job in plan.jobs
        ),
    )


def run_experiment(record: Record, jobs: Sequence[LocalJob]) -> Record:
    """Run all jobs and keep the record up to date.

    Raises:
        JobFailedError: a job failed; the ones after it were not started.
    """
    import nemo_run

    experiment = nemo_run.Experiment(
        record.expname,
        id=record.id,
        executor=nemo_run.LocalExecutor(),
        log_level="WARNING",
        clean_mode=True,
        enable_goodbye_message=False,
        skip_status_at_exit=True,
    )
    with experiment:
        for job in jobs:
            task = nemo_run.Partial(run_local_job, spec=json.dumps(dataclasses.asdict(job)))
            experiment.add(task, name=job.name)
        record.save()
        state = FAILED
        try:
            experiment.run(direct=True)
            state = SUCCEEDED
        finally:
            record = dataclasses.replace(record, state=state)
            record.save()
    return record


def run_local_job(spec: str) -> None:
    """Run one job, given as the JSON of a `LocalJob`; what NeMo-Run calls."""
    job = json.loads(spec)
    folder = Path(job["run_dir"])
    folder.mkdir(parents=True, exist_ok=True)
    processes = []
    for process in job["processes"]:
        script = folder / f"{process['name']}.sh"
        script.write_text(process["script"], encoding="utf-8")
        processes.append(
            Process(name=process["name"], script=script, log=Path(process["log"]), is_main=process["is_main"])
        )
    env = os.environ | terminal_env() | {"NS_RUN_DIR": job["run_dir"]}
    try:
        run_job(job["name"], processes, env, clean_up=job["clean_up"])
    finally:
        if job["secrets"]:
            Path(job["secrets"]).unlink(missing_ok=True)
