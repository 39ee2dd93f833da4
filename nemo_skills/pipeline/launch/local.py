"""Executor `none`: jobs are processes of this machine."""

import dataclasses
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nemo_skills.pipeline.cluster.env import Pairs, resolve_env
from nemo_skills.pipeline.launch.blocking import LocalJob, LocalProcess, new_record, run_experiment
from nemo_skills.pipeline.launch.layout import with_local_code
from nemo_skills.pipeline.launch.plan import Component, Job, Plan
from nemo_skills.pipeline.launch.records import Record
from nemo_skills.pipeline.launch.render import RenderedFile, RenderedJob, Site, render_component

_CODE_DIR = str(Path(__file__).resolve().parents[3])


def render(plan: Plan) -> tuple[RenderedJob, ...]:
    """Return the scripts of every job."""
    return tuple(
        RenderedJob(job.name, tuple(RenderedFile(f"{c.name}.sh", _script(plan, c)) for c in job.components))
        for job in plan.jobs
    )


def submit(plan: Plan) -> Record:
    """Run all jobs of the plan.

    Raises:
        JobFailedError: a job failed; the ones after it were not started.
        UserError: a required variable is not set, or an experiment of `run_after` has not succeeded.
    """
    env = resolve_env(plan.cluster.env_vars, plan.cluster.required_env_vars, os.environ)
    plan = dataclasses.replace(plan, env=env.plain)
    record = new_record(plan)
    with _exported(env.secrets):
        return run_experiment(record, [_local_job(plan, job, record) for job in plan.jobs])


@contextmanager
def _exported(variables: Pairs) -> Iterator[None]:
    """Let this program's environment, which jobs inherit, hold secrets: scripts and metadata must not."""
    before = {name: os.environ.get(name) for name, _ in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _local_job(plan: Plan, job: Job, record: Record) -> LocalJob:
    processes = tuple(
        LocalProcess(
            name=c.name,
            script=_script(plan, c),
            log=plan.log_path(job, c),
            is_main=c is job.main,
            replica=c.replica,
        )
        for c in job.components
    )
    return LocalJob(
        name=job.name,
        processes=processes,
        run_dir=str(record.folder / job.name / "run"),
        despite_failure=job.despite_failure,
        continues=job.continues,
        unfinished_code=job.unfinished_code,
    )


def _script(plan: Plan, component: Component) -> str:
    container = plan.cluster.container(component.role)
    python = Path(sys.executable)
    if container.kind == "venv":
        python = Path(container.ref).expanduser().absolute() / "bin" / "python"
    site = Site(
        interpreter=str(python),
        code_dir=_CODE_DIR,
        path_dirs=(str(python.parent),),
        env=plan.env,
    )
    if not (Path.cwd() / "nemo_skills").is_dir():
        # packaged code always has it
        component = with_local_code(component, _CODE_DIR, inside="nemo_skills")
    return render_component(with_local_code(component, str(Path.cwd())), site)
