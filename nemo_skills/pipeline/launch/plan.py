"""What is to run: a plan of jobs, each a group of components that live and die together. Pure data."""

import enum
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from nemo_skills.core.errors import UserError
from nemo_skills.pipeline.cluster.config import ClusterConfig
from nemo_skills.pipeline.options import JobOptions


class Interpreter(enum.Enum):
    """Stands in an argv for the Python interpreter of the component's role."""

    PYTHON = "python"


@dataclass(frozen=True)
class CodePath:
    """Stands in an argv for a file of the packaged code, wherever that lies in the job."""

    relative: str


Word = str | Interpreter | CodePath
Argv = tuple[Word, ...]

PYTHON = Interpreter.PYTHON
_EXPNAME = re.compile(r"\w[\w .+=@()-]*")


@dataclass(frozen=True, kw_only=True)
class Component:
    """One process group of a job: a server, a main or a sandbox."""

    name: str
    commands: tuple[Argv, ...]
    """Run one after the other; the first failure ends the component, unless they are `independent`."""
    role: str
    """Container role it runs in."""
    nodes: int = 1
    tasks_per_node: int = 1
    gpus: int = 0
    """GPUs per node."""
    env: tuple[tuple[str, str], ...] = ()
    """Variables of this component only; never secrets."""
    replica: bool = False
    """Whether it is one of several that do the same: the job goes on while one of them lives."""
    mpi: str | None = None
    """Slurm's MPI plugin that connects its processes."""
    independent: bool = False
    """Whether the others run although one failed; the component fails in the end all the same."""
    before: tuple[Argv, ...] = ()
    """Run first; a failure ends the component."""
    after: tuple[Argv, ...] = ()
    """Run last, if all others succeeded."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Components on one allocation. The first exit ends all; the main's exit code is the job's.

    Only replicas may end before the others, as long as one of them is left.
    """

    name: str
    components: tuple[Component, ...]
    after: tuple[str, ...] = ()
    """Names of jobs of the same plan that must succeed first."""
    despite_failure: bool = False
    """Whether it runs once those have ended, however they ended; the plan fails in the end all the same."""
    continues: str | None = None
    """Name of the job of the same plan that this one continues if that ran out of time."""
    unfinished_code: int | None = None
    """Exit code with which its main says: time is up, all is saved, the next job shall go on."""
    after_ids: tuple[str, ...] = ()
    """Slurm's ids of jobs of other plans that must succeed first."""
    writes: tuple[str, ...] = ()
    """Files that it writes, as jobs see them; no job of another plan may do so at the same time."""

    @property
    def node_groups(self) -> tuple[tuple[Component, ...], ...]:
        """Components by the nodes they share: each that asks for GPUs has its own, the others join the first.

        Replicas share theirs. One group means one ordinary allocation.
        """
        replicas = tuple(c for c in self.components if c.gpus and c.replica)
        alone = [(c,) for c in self.components if c.gpus and not c.replica]
        with_gpus = [replicas, *alone] if replicas else alone
        if len(with_gpus) < 2:
            return (self.components,)
        others = tuple(c for c in self.components if not c.gpus)
        return ((*with_gpus[0], *others), *with_gpus[1:])

    @property
    def main(self) -> Component:
        """The component whose exit code counts: the one named `main`, else the last."""
        return next((c for c in self.components if c.name == "main"), self.components[-1])


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that one wrapper call launches, in an order that respects `Job.after`."""

    expname: str
    cluster: ClusterConfig
    jobs: tuple[Job, ...]
    log_dir: str
    options: JobOptions = field(default_factory=JobOptions)
    """What the user asks of the scheduler, and how code is packaged."""
    env: tuple[tuple[str, str], ...] = ()
    """Variables of every component; never secrets."""
    replaces: tuple[str, ...] = ()
    """Slurm's ids of queued jobs whose work these jobs take over."""

    def __post_init__(self) -> None:
        # it names folders, files and jobs everywhere
        if not _EXPNAME.fullmatch(self.expname):
            raise UserError(
                f"--expname={self.expname}: use letters, digits, blanks and . _ + = @ ( ) - only,"
                " with a letter or digit first"
            )

    def partition(self, job: Job) -> str | None:
        """Return the Slurm partition of a job, which its first node group decides."""
        return self.partition_of(job.node_groups[0])

    def partition_of(self, group: tuple[Component, ...]) -> str | None:
        """Return the partition of components that share nodes: the CPU one when none asks for GPUs."""
        if self.options.partition:
            return self.options.partition
        if not any(c.gpus for c in group) and self.cluster.cpu_partition:
            return self.cluster.cpu_partition
        return self.cluster.partition

    def log_path(self, job: Job, component: Component) -> str:
        """Return where a component's output goes."""
        return str(PurePosixPath(self.log_dir) / f"{job.name}-{component.name}.log")

    def batch_log_path(self, job: Job) -> str:
        """Return where the output of a job's Slurm batch script goes."""
        return str(PurePosixPath(self.log_dir) / f"{job.name}-sbatch.log")


def shell(line: str | None) -> tuple[Argv, ...]:
    """Return the commands that run a line of shell: one, or none where there is no line."""
    return (("bash", "-c", line),) if line else ()


def chain(jobs: Sequence[Job], more: int) -> tuple[Job, ...]:
    """Follow every job by `more` that continue it if it runs out of time; who waited waits for the last."""
    if not more:
        return tuple(jobs)
    last = {job.name: f"{job.name}-part{more + 1}" for job in jobs}
    chained = []
    for job in jobs:
        first = replace(job, after=tuple(last[name] for name in job.after))
        parts = [replace(job, name=f"{job.name}-part{i}", after=(), after_ids=()) for i in range(2, more + 2)]
        before = [first, *parts]
        chained += [first, *(replace(p, continues=b.name) for p, b in zip(parts, before, strict=False))]
    return tuple(chained)
