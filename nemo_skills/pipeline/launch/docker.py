"""Executor `local`: every component is a container of this machine's Docker engine."""

import dataclasses
import hashlib
import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from nemo_skills.core.errors import UserError
from nemo_skills.core.log import get_logger
from nemo_skills.pipeline.cluster.config import Container
from nemo_skills.pipeline.cluster.env import JobEnv, render_secrets_file, resolve_env
from nemo_skills.pipeline.launch.blocking import LocalJob, LocalProcess, new_record, run_experiment
from nemo_skills.pipeline.launch.layout import CODE_TARGET, JOB_TARGET, SECRETS_FILE, Layout, host_path
from nemo_skills.pipeline.launch.packaging import build_package, extract_script
from nemo_skills.pipeline.launch.plan import Component, Job, Plan
from nemo_skills.pipeline.launch.records import Record, nemorun_home
from nemo_skills.pipeline.launch.render import RenderedFile, RenderedJob, render_component

LOG = get_logger(__name__)

_RUN_DIR = f"{JOB_TARGET}/run"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Engine:
    """What scripts need to know of the user and of the images."""

    user: str | None = None
    """`uid:gid` to run as, so that results belong to the user; None inside is root outside too."""
    images: tuple[tuple[str, str], ...] = ()
    """Container role to the image that runs it."""

    def image(self, role: str) -> str:
        """Return the image of a role."""
        return dict(self.images)[role]


def render(plan: Plan) -> tuple[RenderedJob, ...]:
    """Return the scripts of every job, with placeholders for what only a run knows."""
    layout = Layout(exp_dir=f"EXPERIMENTS/{plan.expname}/ID", code_dir="/CODE")
    layout = dataclasses.replace(layout, exp_dir="/" + layout.exp_dir)
    images = {
        c.role: _image_name(plan.cluster.container(c.role)) for job in plan.jobs for c in job.components
    }
    return tuple(_render_job(plan, layout, job, Engine(images=tuple(images.items()))) for job in plan.jobs)


def submit(plan: Plan) -> Record:
    """Run all jobs of the plan.

    Raises:
        JobFailedError: a job failed; the ones after it were not started.
        UserError: there is no Docker engine or image, or an experiment of `run_after` has not succeeded.
    """
    record = new_record(plan)
    env = resolve_env(plan.cluster.env_vars, plan.cluster.required_env_vars, os.environ)
    plan = dataclasses.replace(plan, env=env.plain)
    engine = Engine(user=_user(), images=tuple((role, _ensure_image(plan, role)) for role in _roles(plan)))
    home = nemorun_home().absolute()
    package = build_package(
        Path.cwd(), home / "ns_packages", allow_uncommitted=plan.options.allow_uncommitted
    )
    layout = Layout(
        exp_dir=str(home / "ns_docker" / plan.expname / record.id),
        code_dir=str(home / "ns_code" / package.digest),
    )
    subprocess.run(["bash", "-c", extract_script(str(package.path), layout.code_dir)], check=True)
    try:
        jobs = [_local_job(plan, layout, job, engine, env) for job in plan.jobs]
        return run_experiment(record, jobs)
    finally:
        for job in plan.jobs:
            (Path(layout.job_dir(job)) / SECRETS_FILE).unlink(missing_ok=True)


def _render_job(plan: Plan, layout: Layout, job: Job, engine: Engine) -> RenderedJob:
    files = []
    for component in job.components:
        site = layout.site(plan, job, component)
        files.append(RenderedFile(f"{component.name}.sh", render_component(component, site)))
        files.append(
            RenderedFile(f"{component.name}.docker.sh", _run_script(plan, layout, job, component, engine))
        )
    return RenderedJob(job.name, tuple(files))


def _local_job(plan: Plan, layout: Layout, job: Job, engine: Engine, env: JobEnv) -> LocalJob:
    folder = Path(layout.job_dir(job))
    (folder / "run").mkdir(parents=True)
    scripts = dict(_render_job(plan, layout, job, engine).files)
    for component in job.components:
        (folder / f"{component.name}.sh").write_text(scripts[f"{component.name}.sh"], encoding="utf-8")
    if env.secrets:
        with os.fdopen(os.open(folder / SECRETS_FILE, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
            file.write(render_secrets_file(env))
    names = [_container_name(layout, job, c) for c in job.components]
    return LocalJob(
        name=job.name,
        processes=tuple(
            LocalProcess(
                name=c.name,
                script=scripts[f"{c.name}.docker.sh"],
                log=host_path(plan.cluster, plan.log_path(job, c)),
                is_main=c is job.main,
            )
            for c in job.components
        ),
        run_dir=str(folder / "run"),
        clean_up=("docker", "rm", "--force", "--volumes", *names),
    )


def _run_script(plan: Plan, layout: Layout, job: Job, component: Component, engine: Engine) -> str:
    argv = ["docker", "run", "--rm", "--init", "--pull=never", "--network=host", "--ipc=host"]
    argv += ["--name", _container_name(layout, job, component)]
    for mount in layout.mounts(plan, job):
        argv += ["--volume", str(mount)]
    if engine.user:
        # such a user has no entry in the image: programs that ask for a name or a home find these
        argv += ["--user", engine.user, "--env=HOME=/tmp", "--env=USER=nemo", "--env=LOGNAME=nemo"]
    if component.gpus:
        argv += [f'--gpus="device={",".join(map(str, range(component.gpus)))}"']
        argv += [f"--env=CUDA_VISIBLE_DEVICES={','.join(map(str, range(component.gpus)))}"]
    argv += [f"--env=NS_RUN_DIR={_RUN_DIR}", "--env=NS_TERMINAL_WIDTH", "--workdir", CODE_TARGET]
    argv += ["--entrypoint=bash", engine.image(component.role), f"{JOB_TARGET}/{component.name}.sh"]
    return f"#!/usr/bin/env bash\nexec {shlex.join(argv)}\n"


def _container_name(layout: Layout, job: Job, component: Component) -> str:
    unique = hashlib.sha256(layout.job_dir(job).encode()).hexdigest()[:12]
    return f"ns-{unique}-{component.name}"


def _roles(plan: Plan) -> list[str]:
    return sorted({c.role for job in plan.jobs for c in job.components})


def _user() -> str | None:
    return f"{os.getuid()}:{os.getgid()}" if os.getuid() else None


def _image_name(container: Container) -> str:
    if container.kind == "dockerfile":
        return f"nemo-skills-{PurePosixPath(container.ref).name.rpartition('.')[2].lower()}:local"
    return container.ref


def _ensure_image(plan: Plan, role: str) -> str:
    """Return the role's image, found here, built or pulled."""
    container = plan.cluster.container(role)
    if container.kind not in ("image", "dockerfile"):
        raise UserError(
            f"cluster config '{plan.cluster.name}': containers.{role} must be an image or dockerfile:path"
            " for executor local"
        )
    image = _image_name(container)
    if container.kind == "dockerfile":
        dockerfile = Path(container.ref).expanduser()
        if not dockerfile.is_file():
            raise UserError(f"containers.{role}: {dockerfile} does not exist")
        LOG.info("building %s from %s", image, dockerfile)
        # the build context is the folder above dockerfiles/, so that a Dockerfile can copy the project
        _docker(
            ["build", "--quiet", "--tag", image, "--file", str(dockerfile), str(dockerfile.parent.parent)]
        )
    elif not _is_here(image):
        LOG.info("pulling %s", image)
        _docker(["pull", image])
    return image


def _is_here(image: str) -> bool:
    return _call(["image", "inspect", image]).returncode == 0


def _docker(args: Sequence[str]) -> None:
    done = _call(args)
    if done.returncode:
        last = "; ".join(done.stderr.strip().splitlines()[-5:])
        raise UserError(f"docker {args[0]} failed: {last}")


def _call(args: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    try:
        done = subprocess.run(["docker", *args], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UserError("executor local needs Docker, but there is no 'docker' command") from None
    if done.returncode and "Cannot connect to the Docker daemon" in done.stderr:
        raise UserError(f"no Docker engine answers: {done.stderr.strip()}")
    return done
