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
from nemo_skills.pipeline.launch.render import RenderedComponent, RenderedJob, Site, render_component
from nemo_skills.pipeline.launch.supervise import Process, run_job, terminal_env

CODE_DIR = str(Path(__file__).resolve().parents[3])


def render(plan: Plan) -> tuple[RenderedJob, ...]:
    """Return the scripts of every job."""

    def rendered(job: Job, component: Component) -> RenderedComponent:
        script = render_component(component, _site(plan, component))
        log = plan.log_path(job, component)
        return RenderedComponent(component.name, script, log, component is job.main)

    return tuple(RenderedJob(job.name, tuple(rendered(job, c) for c in job.components)) for job in plan.jobs)


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
        for job in render(plan):
            run_dir = str(record.folder / job.name / "run")
            task = nemo_run.Partial(run_rendered, spec=json.dumps(dataclasses.asdict(job)), run_dir=run_dir)
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


def run_rendered(spec: str, run_dir: str) -> None:
    """Run one rendered job; what NeMo-Run calls. `spec` is the `RenderedJob` as JSON."""
    job = json.loads(spec)
    folder = Path(run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    processes = []
    for component in job["components"]:
        script = folder / f"{component['name']}.sh"
        script.write_text(component["script"], encoding="utf-8")
        processes.append(
            Process(
                name=component["name"],
                script=script,
                log=Path(component["log"]),
                is_main=component["is_main"],
            )
        )
    run_job(job["name"], processes, os.environ | terminal_env() | {"NS_RUN_DIR": run_dir})


def _site(plan: Plan, component: Component) -> Site:
    container = plan.cluster.container(component.role)
    if container.kind == "venv":
        programs = Path(container.ref).expanduser().absolute() / "bin"
        return Site(interpreter=str(programs / "python"), code_dir=CODE_DIR, path_dirs=(str(programs),))
    return Site(interpreter=sys.executable, code_dir=CODE_DIR, path_dirs=(str(Path(sys.executable).parent),))
