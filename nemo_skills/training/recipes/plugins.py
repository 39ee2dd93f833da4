"""Plugins for NeMo-Run: `run.run(task, executor=executor, plugins=[ProfilerPlugin(step_start=10)])`.

Each changes the task or the executor before it is launched. They go with recipes, as scripts or as
configurations; those that only set variables or options of the executor go with every other task too.
"""

import re
import shutil
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, TypeAlias

import nemo_run as run

from nemo_skills.core.errors import UserError, require
from nemo_skills.core.hydra import encode_override
from nemo_skills.core.log import get_logger
from nemo_skills.core.main_guard import refuse_reimport, watch_reimport
from nemo_skills.training.engine import profiling
from nemo_skills.training.recipes.config import ConfigContainer
from nemo_skills.training.recipes.launching import MODULE, recipe_script
from nemo_skills.training.recipes.run import decoded

Task: TypeAlias = "run.Partial[Any] | run.Script"

LOG = get_logger(__name__)

watch_reimport()


class RecipePlugin(run.Plugin):  # type: ignore[misc]
    """What the plugins have in common."""

    def setup(self, task: Task, executor: run.Executor) -> None:
        """Change the executor and the task, copies of what is about to be launched."""
        refuse_reimport()
        self.change_executor(executor)
        self.change_task(task)

    def change_executor(self, executor: run.Executor) -> None:
        """Set variables and options."""

    def change_task(self, task: Task) -> None:
        """Change settings of the recipe."""


@dataclass(kw_only=True)
class ProfilerPlugin(RecipePlugin):
    """Records steps with torch's profiler: a trace for chrome://tracing, and a table of times."""

    step_start: int = 10
    """The first step to record; a run begins with step 1, which is slower than others."""
    step_end: int = 12
    """The last one."""
    ranks: list[int] = field(default_factory=lambda: [0])
    """Processes to record."""
    folder: str | None = None
    """Where to write; by default `profile` in the folder of the run."""

    def change_executor(self, executor: run.Executor) -> None:
        """Set the variables that the training loop reads."""
        _set_variables(executor, self.variables())

    def variables(self) -> dict[str, str]:
        """Return the variables that say what to record."""
        require(
            0 < self.step_start <= self.step_end, "step_start must be 1 or more, and step_end not smaller"
        )
        require(bool(self.ranks), "ranks must name a process")
        variables = {
            profiling.STEPS: f"{self.step_start}-{self.step_end}",
            profiling.RANKS: ",".join(map(str, self.ranks)),
        }
        return variables | ({profiling.FOLDER: self.folder} if self.folder else {})


@dataclass(kw_only=True)
class NsysPlugin(ProfilerPlugin):
    """Records steps with Nsight Systems, which must be where the job runs; NeMo-Run starts it."""

    trace: list[str] = field(default_factory=lambda: ["nvtx", "cuda"])
    """What to trace."""
    gpu_metrics: bool = False
    """Sample figures of the GPU as well; on Slurm alone."""

    def change_executor(self, executor: run.Executor) -> None:
        """Have the launcher start `nsys`, and the training loop mark the steps."""
        require(self.folder is None, "NsysPlugin writes into NeMo-Run's folder of the job: leave folder out")
        if isinstance(executor, run.LocalExecutor) and not shutil.which("nsys"):
            raise UserError(
                "nsys is not in PATH: install Nsight Systems, or take ProfilerPlugin, which needs only torch."
            )
        _set_variables(executor, self.variables() | {profiling.TOOL: "nsys"})
        launcher = executor.get_launcher()
        launcher.nsys_profile = True
        launcher.nsys_trace = list(self.trace)
        launcher.nsys_gpu_metrics = self.gpu_metrics


@dataclass(kw_only=True)
class WandbPlugin(RecipePlugin):
    """Logs to Weights & Biases.

    Its key is not passed on, for NeMo-Run would write it into scripts: the job needs `WANDB_API_KEY` in its
    environment or a `~/.netrc`; without either the run stays in its folder, for `wandb sync`.
    """

    project: str
    """The project."""
    name: str | None = None
    """The run; by default the name of the recipe's logger."""
    group: str | None = None
    """The group of runs."""

    def setup(self, task: Task, executor: run.Executor) -> None:
        """Set the names in a recipe; other tasks get W&B's own variables."""
        super().setup(task, executor)
        if _is_recipe(task):
            _change(task, {"logger.wandb": True, "logger.wandb_project": self.project})
            _change(task, {"logger.wandb_name": self.name, "logger.wandb_group": self.group})
            return
        names = {"WANDB_PROJECT": self.project, "WANDB_NAME": self.name, "WANDB_RUN_GROUP": self.group}
        _set_variables(executor, {key: value for key, value in names.items() if value})


@dataclass(kw_only=True)
class PreemptionPlugin(RecipePlugin):
    """Saves before time is over, and continues in the same job, which is put into the queue again."""

    seconds_before: int = 120
    """How long before the time limit Slurm asks the job to end, and so how long saving may take."""
    max_time_per_run: str | None = None
    """Of a recipe: save and stop after this time (DD:HH:MM:SS), whatever the executor."""
    retries: int = 3
    """How often the job may continue; `LocalExecutor` starts nothing again."""

    def change_executor(self, executor: run.Executor) -> None:
        """Ask for the signal, and for retries."""
        require(self.seconds_before > 0, "seconds_before must be positive")
        require(self.retries >= 0, "retries must be 0 or more")
        if isinstance(executor, run.SlurmExecutor):
            # to all processes of all steps: torchrun passes it on late, and leaves them little time
            executor.signal = executor.signal or f"TERM@{self.seconds_before}"
        _retry(executor, self.retries)

    def change_task(self, task: Task) -> None:
        """Limit the time of a run."""
        if self.max_time_per_run is not None:
            _change(task, {"train.max_time_per_run": self.max_time_per_run})


@dataclass(kw_only=True)
class FaultTolerancePlugin(RecipePlugin):
    """Starts a failed job again, which goes on from its last checkpoint."""

    retries: int = 3
    """How often the executor starts the job again; `LocalExecutor` never does."""
    in_job_restarts: int | None = None
    """How often its processes are started again without leaving the nodes, by the launcher of NVIDIA's
    resiliency extension (`nvidia-resiliency-ext`), which the job's environment must have; None: never."""
    heartbeat_timeout_s: float | None = None
    """With that launcher: take processes that are silent for so long as failed."""

    def change_executor(self, executor: run.Executor) -> None:
        """Set retries, and the launcher where it is wanted."""
        require(self.retries >= 0, "retries must be 0 or more")
        if self.in_job_restarts is None:
            _retry(executor, self.retries)
            require(self.heartbeat_timeout_s is None, "heartbeat_timeout_s needs in_job_restarts")
            return
        require(self.in_job_restarts > 0, "in_job_restarts must be positive")
        executor.retries = max(executor.retries, self.retries)
        before = executor.get_launcher()
        executor.launcher = run.FaultTolerance(
            max_restarts=self.in_job_restarts,
            rank_heartbeat_timeout=self.heartbeat_timeout_s,
            initial_rank_heartbeat_timeout=self.heartbeat_timeout_s,
            rdzv_port=getattr(before, "rdzv_port", 29500),
            nsys_profile=before.nsys_profile,
            nsys_trace=before.nsys_trace,
        )
        # of the new one, too
        executor._launcher_setup = False


@dataclass(kw_only=True)
class PerfEnvPlugin(RecipePlugin):
    """Sets variables of the environment on which speed depends; what the executor sets already stays."""

    threads: int | None = None
    """Threads of each process on CPUs; by default torchrun's choice, one."""
    expandable_segments: bool = True
    """Let torch's allocator grow its blocks, which wastes less memory."""
    avoid_record_streams: bool = True
    """Free what was sent to other GPUs as soon as that is done."""
    device_connections: int | None = None
    """Queues of a GPU: 1 keeps sending and computing in order, as tensor parallelism often wants."""
    variables: dict[str, str] = field(default_factory=dict)
    """Others, such as `NCCL_DEBUG`."""

    def change_executor(self, executor: run.Executor) -> None:
        """Set the variables."""
        chosen: dict[str, Any] = {
            "OMP_NUM_THREADS": self.threads,
            "CUDA_DEVICE_MAX_CONNECTIONS": self.device_connections,
            "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True" if self.expandable_segments else None,
            "TORCH_NCCL_AVOID_RECORD_STREAMS": 1 if self.avoid_record_streams else None,
            # tokenizers warn when a process that has used them is forked
            "TOKENIZERS_PARALLELISM": "false",
            **self.variables,
        }
        set_before = executor.env_vars
        _set_variables(executor, {key: str(value) for key, value in chosen.items() if value is not None})
        executor.env_vars.update(set_before)


def _retry(executor: run.Executor, retries: int) -> None:
    executor.retries = max(executor.retries, retries)
    if executor.retries and isinstance(executor, run.LocalExecutor):
        LOG.warning("LocalExecutor does not start a job again: after a failure, launch it once more to go on")


def _set_variables(executor: run.Executor, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        # NeMo-Run writes them into scripts as they are
        require(
            re.fullmatch(r"[\w@%+=:,./-]*", value, re.ASCII) is not None,
            f"{name}={value}: only letters, digits and @%+=:,./-_ are safe in NeMo-Run's variables",
        )
    executor.env_vars = {**executor.env_vars, **variables}


def _is_recipe(task: Task) -> bool:
    if isinstance(task, run.Script):
        return bool(task.m and task.path == MODULE)
    return getattr(getattr(task, "config", None), "__fn_or_cls__", None) is ConfigContainer


def _change(task: Task, changes: dict[str, Any]) -> None:
    """Change settings of a recipe; None leaves one as it is.

    Raises:
        UserError: the task is no recipe.
    """
    given = {path: value for path, value in changes.items() if value is not None}
    if not _is_recipe(task):
        raise UserError(f"{', '.join(given)} can be set in recipes alone, not in {task!r}.")
    if isinstance(task, run.Script):
        name, *before = task.args
        more = [encode_override(path, value) for path, value in given.items()]
        task.args = recipe_script(name, [*decoded(before), *more]).args
        return
    for path, value in given.items():
        *above, last = path.split(".")
        setattr(reduce(getattr, above, task.config), last, value)
