"""What is to run: a plan of jobs, each a group of components that live and die together. Pure data."""

import enum
from dataclasses import dataclass
from pathlib import PurePosixPath

from nemo_skills.pipeline.cluster.config import ClusterConfig


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


@dataclass(frozen=True, kw_only=True)
class Component:
    """One process group of a job: a server, a main or a sandbox."""

    name: str
    commands: tuple[Argv, ...]
    """Run one after the other; the first failure ends the component."""
    role: str
    """Container role it runs in."""
    nodes: int = 1
    tasks_per_node: int = 1
    gpus: int = 0
    """GPUs per node."""
    env: tuple[tuple[str, str], ...] = ()
    """Variables of this component only; never secrets."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Components on one allocation. The first exit ends all; the main's exit code is the job's."""

    name: str
    components: tuple[Component, ...]
    after: tuple[str, ...] = ()
    """Names of jobs of the same plan that must succeed first."""

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
    run_after: tuple[str, ...] = ()
    """Names of experiments that must succeed first."""

    def log_path(self, job: Job, component: Component) -> str:
        """Return where a component's output goes."""
        return str(PurePosixPath(self.log_dir) / f"{job.name}-{component.name}.log")
