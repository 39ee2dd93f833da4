"""Executor `none`: jobs are processes of this machine, run one after the other while the wrapper waits."""

import dataclasses
import json
import os
import sys
from pathlib import Path

from nemo_skills.pipeline.launch.plan import Component, Job, Plan
from nemo_skills.pipeline.launch.records import (
    FAILED,
    RUNNING,
    SUCCEEDED,
    JobRecord,
    Record,
    new_id,
    require_success,
)
from nemo_skills.pipeline.launch.render import RenderedFile, RenderedJob, Site, render_component
from nemo_skills.pipeline.launch.supervise import Process, run_job, terminal_env

CODE_DIR = str(Path(__file__).resolve().parents[3])


def render(plan: Plan) -> tuple[RenderedJob, ...]:
    """Return the scripts of every job."""

    def rendered(job: Job) -> RenderedJob:
        return RenderedJob(
            job.name, tuple(RenderedFile(c.name, render_component(c, _site(plan, c))) for c in job.components)
        )

    return tuple(map(rendered, plan.jobs))


def submit(plan: Plan) -> Record:
    """Run all jobs of the plan as a NeMo-Run experiment and wait for them.

    Raises:
        JobFailedError: a job failed; the ones after it were not started.
        UserError: an experiment of `run_after` has not succeeded.
    """
    require_success(plan.run_after)
    import nemo_run

    record = Record(
        expname=plan.expname,
        id=new_id(plan.expname),
        cluster=plan.cluster.name,
        executor=plan.cluster.executor,
        log_dir=plan.log_dir,
        state=RUNNING,
        jobs=tuple(JobRecord(name=job.name, log=plan.log_path(job, job.main)) for job in plan.jobs),
    )
    experiment = nemo_run.Experiment(
        plan.expname,
        id=record.id,
        executor=nemo_run.LocalExecutor(),
        log_level="WARNING",
        clean_mode=True,
        enable_goodbye_message=False,
        skip_status_at_exit=True,
    )
    with experiment:
        for job, rendered in zip(plan.jobs, render(plan), strict=True):
            spec = json.dumps(
                [
                    [name, text, plan.log_path(job, c), c is job.main]
                    for (name, text), c in zip(rendered.files, job.components, strict=True)
                ]
            )
            run_dir = str(record.folder / job.name / "run")
            task = nemo_run.Partial(run_rendered, job_name=job.name, spec=spec, run_dir=run_dir)
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


def run_rendered(job_name: str, spec: str, run_dir: str) -> None:
    """Run one rendered job; what NeMo-Run calls.

    Args:
        job_name: Name of the job.
        spec: JSON list with name, script, log file and whether it is the main, for each component.
        run_dir: A folder that this run of the job has for itself.
    """
    folder = Path(run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    processes = []
    for name, text, log, is_main in json.loads(spec):
        script = folder / f"{name}.sh"
        script.write_text(text, encoding="utf-8")
        processes.append(Process(name=name, script=script, log=Path(log), is_main=is_main))
    run_job(job_name, processes, os.environ | terminal_env() | {"NS_RUN_DIR": run_dir})


def _site(plan: Plan, component: Component) -> Site:
    container = plan.cluster.container(component.role)
    if container.kind == "venv":
        programs = Path(container.ref).expanduser().absolute() / "bin"
        return Site(interpreter=str(programs / "python"), code_dir=CODE_DIR, path_dirs=(str(programs),))
    return Site(interpreter=sys.executable, code_dir=CODE_DIR, path_dirs=(str(Path(sys.executable).parent),))
