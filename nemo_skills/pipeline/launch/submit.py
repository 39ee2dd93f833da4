"""The one door to the executors: shows a plan, or carries it out."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from rich.console import Console

from nemo_skills.core.errors import UserError
from nemo_skills.core.main_guard import refuse_reimport
from nemo_skills.pipeline.cluster.config import ClusterConfig
from nemo_skills.pipeline.launch.layout import host_path
from nemo_skills.pipeline.launch.plan import Plan
from nemo_skills.pipeline.launch.records import Record
from nemo_skills.pipeline.launch.render import RenderedJob
from nemo_skills.pipeline.launch.survey import Survey

_BACKENDS = {
    "none": "nemo_skills.pipeline.launch.local",
    "local": "nemo_skills.pipeline.launch.docker",
    "slurm": "nemo_skills.pipeline.launch.slurm",
}


@dataclass(frozen=True)
class _Backend:
    render: Callable[[Plan], tuple[RenderedJob, ...]]
    submit: Callable[[Plan], Record]


def launch(plan: Plan, *, dry_run: bool = False, found: Survey | None = None) -> Record | None:
    """Carry out a plan, or with `dry_run` only print it; returns what was launched.

    `found` is what a survey for this plan has found just now; it saves asking again.

    Raises:
        JobFailedError: a job that the wrapper waited for failed.
        UserError: the plan cannot be launched on its cluster.
    """
    refuse_reimport()
    backend = _backend(plan.cluster.executor)
    if dry_run:
        show(plan, backend.render(plan))
        return None
    if plan.cluster.executor == "slurm":
        from nemo_skills.pipeline.launch import slurm

        return slurm.submit(plan, found)
    return backend.submit(plan)


def approach(cluster: ClusterConfig) -> None:
    """Begin to connect to where jobs are submitted; worth it before something that takes time here."""
    if cluster.executor == "slurm":
        from nemo_skills.pipeline.launch import slurm

        slurm.approach(cluster)


def survey(
    cluster: ClusterConfig, files: Sequence[str], writes: Sequence[str], run_after: Sequence[str] = ()
) -> Survey:
    """Tell which files exist where jobs run, and which jobs in the queue write what.

    Give `run_after` where the result is to be passed to `launch`.
    """
    if cluster.executor == "slurm":
        from nemo_skills.pipeline.launch import slurm

        return slurm.survey(cluster, files, writes, run_after)
    return Survey(exists=frozenset(path for path in files if Path(host_path(cluster, path)).exists()))


def show(plan: Plan, jobs: tuple[RenderedJob, ...]) -> None:
    """Print plan, mounts and scripts on stdout."""
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(f"experiment {plan.expname} on cluster {plan.cluster.name} ({plan.cluster.executor})")
    if plan.options.run_after:
        console.print(f"after: {', '.join(plan.options.run_after)}")
    for mount in plan.cluster.mounts:
        console.print(f"mount {mount}")
    for planned, job in zip(plan.jobs, jobs, strict=True):
        after = f" (after {', '.join(planned.after)})" if planned.after else ""
        continues = f" (goes on where {planned.continues} stops)" if planned.continues else ""
        console.print(f"\njob {job.name}{after}{continues}")
        for component in planned.components:
            console.print(f"log of {component.name}: {plan.log_path(planned, component)}")
        for file in job.files:
            console.print(f"-- {file.name}")
            console.print(file.text.rstrip())
    console.print("\ndry run: nothing was launched")


def _backend(executor: str) -> _Backend:
    if executor not in _BACKENDS:
        raise UserError(f"executor '{executor}' cannot launch jobs yet")
    module = importlib.import_module(_BACKENDS[executor])
    return cast(_Backend, module)
