"""The batch script of one Slurm job. Pure: the same plan and layout always give the same text."""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field

from nemo_skills.core.errors import UserError
from nemo_skills.pipeline.cluster.config import Container
from nemo_skills.pipeline.launch.layout import JOB_TARGET, Layout, host_path, with_local_code
from nemo_skills.pipeline.launch.plan import Component, Job, Plan
from nemo_skills.pipeline.launch.render import render_component
from nemo_skills.pipeline.launch.slurm_batch import EPILOGUE, PROLOGUE

WARNING_S = 120
"""Seconds before the time limit at which the main is told to save and stop; Slurm may be a minute early."""
WARNING_SHARE = 4
"""The warning never comes in more than this fraction of the time limit."""
_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<rest>\d+(?::\d+){0,2})")


@dataclass(frozen=True)
class SlurmJob:
    """The files of one job, relative to its folder."""

    name: str
    files: tuple[tuple[str, str], ...] = field(repr=False)


def render_job(plan: Plan, layout: Layout, job: Job) -> SlurmJob:
    """Return the batch script and the component scripts of one job.

    Raises:
        UserError: a path cannot be said in Slurm's language, or a role has no container.
    """
    files = [("job.sbatch", _batch_script(plan, layout, job))]
    for component in job.components:
        site = layout.site(plan, job, component)
        if not plan.cluster.uses_containers:
            component = with_local_code(component, layout.code_dir)  # noqa: PLW2901
        files.append((f"{component.name}.sh", render_component(component, site)))
    return SlurmJob(job.name, tuple(files))


def seconds(limit: str) -> int | None:
    """Return a time limit in Slurm's form (`90`, `1:30:00`, `2-12`) in seconds; None when it has no end."""
    match = _TIME.fullmatch(limit.strip())
    if match is None:
        return None
    numbers = [int(part) for part in match["rest"].split(":")]
    if match["days"] is not None:
        hours, minutes, secs = (*numbers, 0, 0)[:3]
        return ((int(match["days"]) * 24 + hours) * 60 + minutes) * 60 + secs
    if len(numbers) == 3:
        return (numbers[0] * 60 + numbers[1]) * 60 + numbers[2]
    return numbers[0] * 60 + (numbers[1] if numbers[1:] else 0)


def time_limit(plan: Plan, job: Job) -> str | None:
    """Return the time limit of a job in Slurm's form, if the cluster config says one."""
    return plan.cluster.timeouts.get(plan.partition(job) or "", plan.cluster.default_timeout)


def _batch_script(plan: Plan, layout: Layout, job: Job) -> str:
    index = {other.name: other for other in plan.jobs}
    following = next((other.name for other in plan.jobs if other.continues == job.name), "")
    job_dir = layout.job_dir(job)
    values = {
        "exp_dir": layout.exp_dir,
        "job_dir": job_dir,
        "seen_job_dir": JOB_TARGET if plan.cluster.uses_containers else job_dir,
        "main": str(job.components.index(job.main)),
        "previous": job.continues or "",
        "next": following,
        "unfinished": "" if job.unfinished_code is None else str(job.unfinished_code),
    }
    lines = ["#!/bin/bash", *_directives(plan, job), ""]
    lines += [f"{name}={shlex.quote(value)}" for name, value in values.items()]
    lines.append(f"names=({shlex.join(c.name for c in job.components)})")
    replicas = [str(index) for index, c in enumerate(job.components) if c.replica]
    lines.append(f"replicas=({' '.join(replicas)})")
    lines.append(f"doomed=({shlex.join(_doomed(index, job))})")
    lines.append(f"mkdir -p {shlex.quote(_plain(host_path(plan.cluster, plan.log_dir)))}")
    steps = [_step(plan, layout, job, component) for component in job.components]
    return "\n".join([*lines, PROLOGUE, *steps, EPILOGUE])


def _doomed(jobs: Mapping[str, Job], job: Job) -> list[str]:
    """Return the jobs that can never run once this one has failed, the parts that continue it included."""
    doomed = [job.name]
    for name, other in jobs.items():
        waits = set() if other.despite_failure else set(other.after)
        if other.continues in doomed or waits & set(doomed):
            doomed.append(name)
    return doomed[1:]


def _directives(plan: Plan, job: Job) -> list[str]:
    """Return the `#SBATCH` lines; components that each ask for GPUs get nodes of their own."""
    lines = _flags(_common_options(plan, job))
    for index, group in enumerate(job.node_groups):
        if index:
            lines.append("#SBATCH hetjob")
        lines += _flags(_node_options(plan, group))
    return lines


def _flags(options: Mapping[str, str | None]) -> list[str]:
    return [
        f"#SBATCH --{name}" + (f"={shlex.quote(value)}" if value else "")
        for name, value in options.items()
        if value is not None
    ]


def _common_options(plan: Plan, job: Job) -> dict[str, str | None]:
    cluster, options = plan.cluster, plan.options
    given = _given(plan)
    limit = time_limit(plan, job)
    log = _plain(f"{host_path(cluster, plan.log_dir)}/{job.name}-sbatch.log")
    return {
        "job-name": _job_name(plan, job),
        "account": cluster.account,
        "qos": options.qos or cluster.qos,
        "time": limit,
        "time-min": options.time_min,
        "output": log.replace("%", "%%"),
        "open-mode": "append",
        "requeue": "",
        "signal": f"B:USR1@{_warning(limit)}",
        "mail-user": cluster.mail_user,
        "mail-type": cluster.mail_type,
        **{name: value for name, value in given.items() if name not in _NODE_OPTIONS},
    }


def _job_name(plan: Plan, job: Job) -> str:
    return f"{plan.cluster.job_name_prefix}{job.name}"


def _warning(limit: str | None) -> int:
    total = seconds(limit) if limit else None
    return WARNING_S if total is None else max(1, min(WARNING_S, total // WARNING_SHARE))


_MEMORY = frozenset({"mem", "mem-per-cpu", "mem-per-gpu"})
# In a heterogeneous job these hold for one group of nodes; the others hold for all
_NODE_OPTIONS = _MEMORY | frozenset(
    {"constraint", "cpus-per-task", "cpus-per-gpu", "exclude", "gres", "nodelist", "tmp", "exclusive"}
)


def _node_options(plan: Plan, group: tuple[Component, ...]) -> dict[str, str | None]:
    gpus = sum(c.gpus for c in group)  # more than one only where replicas share their nodes
    given = {name: value for name, value in _given(plan).items() if name in _NODE_OPTIONS}
    whole = not plan.options.not_exclusive
    return {
        "partition": plan.partition_of(group),
        "nodes": str(max(c.nodes for c in group)),
        "ntasks-per-node": str(max(c.tasks_per_node for c in group)),
        "gpus-per-node": str(gpus) if gpus else None,
        "exclusive": "" if whole else None,
        # many clusters give a default share per CPU, also to jobs that take the node whole
        "mem": "0" if whole and not given.keys() & _MEMORY else None,
        **given,
    }


def _given(plan: Plan) -> dict[str, str]:
    """Return the user's own sbatch options, which come last and win."""
    if "time" in plan.cluster.sbatch_options:
        # YAML reads an unquoted 04:00:00 as a number, which to Slurm is minutes
        raise UserError("sbatch_options.time: say it with default_timeout or timeouts")
    return {name.lstrip("-").replace("_", "-"): value for name, value in plan.cluster.sbatch_options.items()}


def _step(plan: Plan, layout: Layout, job: Job, component: Component) -> str:
    """Return the call that starts one component as a step of the job."""
    groups = job.node_groups
    log = plan.log_path(job, component)
    argv = []
    if len(groups) > 1:
        argv.append(f"--het-group={next(i for i, group in enumerate(groups) if component in group)}")
    argv += [
        f"--job-name={component.name}",
        "--overlap",
        "--kill-on-bad-exit=1",
        "--export=ALL",
        f"--nodes={component.nodes}",
        f"--ntasks={component.nodes * component.tasks_per_node}",
        f"--ntasks-per-node={component.tasks_per_node}",
    ]
    if component.mpi:
        argv.append(f"--mpi={component.mpi}")
    seen = layout.job_dir(job)
    if plan.cluster.uses_containers:
        seen = JOB_TARGET
        argv += _container_options(plan, layout, job, plan.cluster.container(component.role))
    # srun calls the job by the name of the step
    argv += ["env", f"SLURM_JOB_NAME={_job_name(plan, job)}", "bash", f"{seen}/{component.name}.sh"]
    told = f"NS_SERVER_LOG={shlex.quote(log)} " if component is not job.main else ""
    return f"{told}start {shlex.join([host_path(plan.cluster, log), *argv])}"


def _container_options(plan: Plan, layout: Layout, job: Job, container: Container) -> list[str]:
    mounts = list(map(str, layout.mounts(plan, job)))
    if wrong := next((mount for mount in mounts if "," in mount), None):
        raise UserError(f"mount '{wrong}' holds a comma, which to Slurm's container plugin is its end")
    return [
        f"--container-image={container.ref}",
        f"--container-mounts={','.join(mounts)}",
        "--container-workdir=/nemo_run/code",
        "--no-container-mount-home",
    ]


def _plain(path: str) -> str:
    """Return a path that Slurm can open: in its file names a backslash turns off all that `%` means."""
    if "\\" in path or "\n" in path:
        raise UserError(f"Slurm cannot write to {path!r}: choose a folder without backslash and line break")
    return path
