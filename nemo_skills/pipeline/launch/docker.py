"""Executor `local`: every component is a container of this machine's Docker engine."""

import csv
import dataclasses
import hashlib
import io
import os
import re
import shlex
import subprocess
from pathlib import Path

from nemo_skills.core.errors import UserError
from nemo_skills.pipeline.cluster.env import JobEnv, render_secrets_file, resolve_env
from nemo_skills.pipeline.cluster.mounts import Mount
from nemo_skills.pipeline.launch.blocking import LocalJob, LocalProcess, new_record, run_experiment
from nemo_skills.pipeline.launch.code import choose_code
from nemo_skills.pipeline.launch.docker_engine import (
    Engine,
    find_engine,
    image_name,
    provide_images,
    this_user,
)
from nemo_skills.pipeline.launch.layout import CODE_TARGET, JOB_TARGET, SANDBOX, Layout, host_path
from nemo_skills.pipeline.launch.packaging import extract_script
from nemo_skills.pipeline.launch.plan import Component, Job, Plan
from nemo_skills.pipeline.launch.records import Record, nemorun_home
from nemo_skills.pipeline.launch.render import RenderedFile, RenderedJob, render_component
from nemo_skills.pipeline.launch.supervise import Signals

LABEL = "nemo-skills.experiment"
"""Label of all containers that this executor starts; its value is the experiment's id."""
_RUN_DIR = f"{JOB_TARGET}/run"


def render(plan: Plan) -> tuple[RenderedJob, ...]:
    """Return the scripts of every job, with placeholders for what only a run knows."""
    roles = {component.role for job in plan.jobs for component in job.components}
    images = tuple((role, image_name(plan.cluster.container(role))) for role in sorted(roles))
    return render_for(plan, dataclasses.replace(this_user(), images=images))


def render_for(plan: Plan, engine: Engine) -> tuple[RenderedJob, ...]:
    """Return the scripts of every job for an engine. Pure.

    Raises:
        UserError: a job needs more GPUs than there are.
    """
    _check_gpus(plan, engine)
    layout = Layout(exp_dir=f"/EXPERIMENTS/{plan.expname}/ID", code_dir="/CODE")
    return tuple(_render_job(plan, layout, job, engine) for job in plan.jobs)


def submit(plan: Plan) -> Record:
    """Run all jobs of the plan.

    Raises:
        JobFailedError: a job failed; the ones after it were not started.
        UserError: there is no Docker engine, image or mounted folder, or an experiment of `run_after` has not
            succeeded.
    """
    record = new_record(plan)
    env = resolve_env(plan.cluster.env_vars, plan.cluster.required_env_vars, os.environ)
    plan = dataclasses.replace(plan, env=env.plain)
    engine = find_engine()
    _check_gpus(plan, engine)
    _prepare_folders(plan)
    roles = {component.role for job in plan.jobs for component in job.components}
    engine = dataclasses.replace(engine, images=provide_images(plan.cluster, roles))
    home = nemorun_home().absolute()
    layout = Layout(
        exp_dir=str(home / "ns_docker" / plan.expname / record.id), code_dir=_unpacked_code(plan, home)
    )
    record = dataclasses.replace(record, code_dir=layout.code_dir)
    with Signals():  # SIGTERM must not skip what comes last
        try:
            return run_experiment(record, [_local_job(plan, layout, job, engine, env) for job in plan.jobs])
        finally:
            for path in Path(layout.exp_dir).glob(f"*/{_secrets_name('*')}"):
                path.unlink(missing_ok=True)


def _unpacked_code(plan: Plan, home: Path) -> str:
    """Return the folder that holds the code, the same for the same code."""
    package = choose_code(plan)
    if isinstance(package, str):
        if not Path(package).is_dir():
            raise UserError(f"the packaged code {package} (--reuse_code_exp) is no longer there")
        return package
    folder = str(home / "ns_code" / package.digest)
    script = extract_script(str(package.path), folder)
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"cannot unpack the code to {folder}: {done.stderr.strip()}")
    return folder


def _prepare_folders(plan: Plan) -> None:
    """Create the log folder, and check that there is something to mount, which Docker reports less clearly.

    With `--check_mounted_paths` the log folder comes first, and with it the output folder that it lies in.
    """
    log_dir = Path(host_path(plan.cluster, plan.log_dir))

    def create() -> None:
        try:
            log_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot create the log folder {log_dir}: {error.strerror}") from error

    if plan.cluster.check_mounts:
        create()
    if missing := [str(m) for m in plan.cluster.mounts if not os.path.lexists(m.source)]:
        raise UserError(f"mounted paths do not exist on this machine: {', '.join(missing)}")
    create()


def _render_job(plan: Plan, layout: Layout, job: Job, engine: Engine) -> RenderedJob:
    files = []
    for component in job.components:
        site = dataclasses.replace(
            layout.site(plan, job, component),
            secrets_file=None
            if component.role == SANDBOX
            else f"{JOB_TARGET}/{_secrets_name(component.name)}",
            secrets_once=True,
            up_file=f"{_RUN_DIR}/{_up_name(component)}",
        )
        run = f"#!/usr/bin/env bash\nexec {shlex.join(_docker_run(plan, layout, job, component, engine))}\n"
        files.append(RenderedFile(f"{component.name}.sh", render_component(component, site)))
        files.append(RenderedFile(f"{component.name}.docker.sh", run))
    return RenderedJob(job.name, tuple(files))


def _local_job(plan: Plan, layout: Layout, job: Job, engine: Engine, env: JobEnv) -> LocalJob:
    folder = Path(layout.job_dir(job))
    (folder / "run").mkdir(parents=True)
    # ours alone, but containers, which see a part of it, may run as another user
    Path(layout.exp_dir).chmod(0o700)
    folder.chmod(0o755)
    (folder / "run").chmod(0o777)
    scripts = dict(_render_job(plan, layout, job, engine).files)
    for component in job.components:
        script = folder / f"{component.name}.sh"
        script.write_text(scripts[script.name], encoding="utf-8")
        script.chmod(0o644)
        if env.secrets and component.role != SANDBOX:
            _write_secrets(folder / _secrets_name(component.name), env)
    names = [_container_name(layout, job, c) for c in job.components]
    return LocalJob(
        name=job.name,
        despite_failure=job.despite_failure,
        continues=job.continues,
        unfinished_code=job.unfinished_code,
        processes=tuple(
            LocalProcess(
                name=c.name,
                script=scripts[f"{c.name}.docker.sh"],
                log=host_path(plan.cluster, plan.log_path(job, c)),
                is_main=c is job.main,
                replica=c.replica,
                up=str(folder / "run" / _up_name(c)),
            )
            for c in job.components
        ),
        run_dir=str(folder / "run"),
        clean_up=("docker", "rm", "--force", "--volumes", *names),
    )


def _up_name(component: Component) -> str:
    return f"{component.name}.up"


def _docker_run(plan: Plan, layout: Layout, job: Job, component: Component, engine: Engine) -> list[str]:
    argv = ["docker", "run", "--rm", "--init", "--pull=never", "--network=host", "--ipc=host"]
    # the output comes to us; the engine would keep a second copy of it
    argv += ["--log-driver=none", *engine.flags]
    argv += ["--name", _container_name(layout, job, component), f"--label={LABEL}={layout.experiment_id}"]
    for mount in layout.mounts(plan, job):
        argv += ["--mount", _mount_option(mount)]
    if engine.user:
        # such a user has no entry in the image: programs that ask for a name or a home find these
        argv += ["--user", engine.user, "--env=HOME=/tmp", "--env=USER=nemo", "--env=LOGNAME=nemo"]
        argv += [f"--group-add={group}" for group in engine.groups]
    if component.role == SANDBOX:
        # what programs get inside is stricter, but takes namespaces, which the engine's own rules deny
        argv += [f"--security-opt={rule}=unconfined" for rule in ("seccomp", "apparmor", "systempaths")]
        argv.append("--pids-limit=8192")
    argv += _gpu_options(job, component, engine)
    argv += [f"--env=NS_RUN_DIR={_RUN_DIR}", "--env=NS_TERMINAL_WIDTH"]
    if component is not job.main:
        argv.append(f"--env=NS_SERVER_LOG={plan.log_path(job, component)}")
    argv += ["--workdir", CODE_TARGET, "--entrypoint=bash", engine.image(component.role)]
    return [*argv, f"{JOB_TARGET}/{component.name}.sh"]


def _mount_option(mount: Mount) -> str:
    """Return the value of `--mount`, which unlike `--volume` never creates a folder; a line of CSV."""
    fields = ["type=bind", f"source={mount.source}", f"target={mount.target}"]
    line = io.StringIO()
    csv.writer(line).writerow([*fields, "readonly"] if mount.read_only else fields)
    return line.getvalue().removesuffix("\r\n")


def _gpu_options(job: Job, component: Component, engine: Engine) -> list[str]:
    """Give every component GPUs of its own, in order."""
    if not component.gpus:
        return []
    first = sum(c.gpus for c in job.components[: job.components.index(component)])
    numbers = range(first, first + component.gpus)
    devices = [str(n) if engine.devices is None else engine.devices[n] for n in numbers]
    inside = ",".join(map(str, range(component.gpus)))  # the container counts those that it sees
    return [f'--gpus="device={",".join(devices)}"', f"--env=CUDA_VISIBLE_DEVICES={inside}"]


def _check_gpus(plan: Plan, engine: Engine) -> None:
    if engine.devices is None:
        return
    for job in plan.jobs:
        if (wanted := sum(c.gpus for c in job.components)) > len(engine.devices):
            visible = ",".join(engine.devices)
            raise UserError(f"job {job.name} needs {wanted} GPUs, but CUDA_VISIBLE_DEVICES is '{visible}'")


def _container_name(layout: Layout, job: Job, component: Component) -> str:
    unique = hashlib.sha256(layout.job_dir(job).encode()).hexdigest()[:8]
    return f"ns-{re.sub(r'[^a-zA-Z0-9_.-]', '-', job.name)}-{component.name}-{unique}"


def _secrets_name(component: str) -> str:
    """Return the file that a component reads its secrets from, once, and removes; nobody else needs it."""
    return f"{component}.secrets.env"


def _write_secrets(path: Path, env: JobEnv) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(render_secrets_file(env))
