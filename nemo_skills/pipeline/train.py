"""`ns train`: fine-tunes a model in a chain of jobs, and averages its checkpoints."""

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from nemo_skills.core.errors import JobFailedError, UserError
from nemo_skills.core.log import get_logger
from nemo_skills.pipeline import main_args
from nemo_skills.pipeline.answering import argument_key, encoded, refuse_owned
from nemo_skills.pipeline.cluster.config import ClusterConfig
from nemo_skills.pipeline.cluster.resolve import resolve_cluster
from nemo_skills.pipeline.cluster.roles import role_with_torch
from nemo_skills.pipeline.launch.plan import PYTHON, Argv, Component, Job, Plan, chain
from nemo_skills.pipeline.launch.records import Record
from nemo_skills.pipeline.launch.slurm_script import seconds, time_limit
from nemo_skills.pipeline.launch.submit import approach, launch
from nemo_skills.pipeline.options import ClusterOptions, JobOptions, NodeOptions, TrainOptions, WandbOptions
from nemo_skills.pipeline.train_nemo import hf_result, nemo_result, start_job, start_model
from nemo_skills.pipeline.train_recipe import names_of_recipe, resolve_recipe
from nemo_skills.pipeline.wrapper import Context, wrapper

LOG = get_logger(__name__)

MAIN = "nemo_skills.training.start_sft"
SCHEMA = "nemo_skills.training.start_sft:SftConfig"
MAINS = {
    "sft": (MAIN, SCHEMA),
    "dpo": ("nemo_skills.training.start_dpo", "nemo_skills.training.start_dpo:DpoConfig"),
}
LAUNCHER = "nemo_skills.training.launch"
AVERAGE = "nemo_skills.training.average_checkpoints"
AVERAGE_SUFFIX = "-average"
UNFINISHED_CODE = 3
"""Exit code of a main that has saved and is to be continued."""
_FILES = ("file_path", "file_names")
_ASSUMED = (
    "exp_manager.max_time_per_run",
    "exp_manager.create_wandb_logger",
    "exp_manager.wandb_logger_kwargs.name",
)
"""Keys that the wrapper fills in where nobody else does."""
_MARGIN_S = 600
"""Before the time limit the main saves and stops; the start of a container counts as well."""
_MARGIN_SHARE = 4
"""That never takes more than this fraction of the time limit."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One call of the wrapper, with its cluster config found and its arguments in valid Hydra grammar."""

    cluster: ClusterConfig
    log_dir: str
    job: JobOptions
    nodes: NodeOptions
    own: TrainOptions
    wandb: Mapping[str, object]
    """The main's arguments about Weights & Biases."""
    args: tuple[str, ...]
    recipe: tuple[str, ...] = ()
    """Arguments of the main that a recipe makes; all others win over them."""

    @property
    def name(self) -> str:
        """Name of the experiment."""
        return self.job.expname or "train"

    @property
    def processes(self) -> int:
        """How many of them each node has."""
        return max(1, self.nodes.num_gpus)

    @property
    def train_dir(self) -> str:
        """What the main calls its folder."""
        return str(PurePosixPath(self.own.output_dir) / "training")

    @property
    def result(self) -> str:
        """Folder of the averaged model."""
        return hf_result(self.own)


@wrapper(main=MAIN, schema=SCHEMA)
def train(
    ctx: Context,
    cluster: ClusterOptions,
    job: JobOptions,
    nodes: NodeOptions,
    own: TrainOptions,
    wandb: WandbOptions,
) -> Record | None:
    """Train a model, and average its checkpoints into `<output_dir>/model-averaged-hf`, or `-nemo`.

    The jobs of a chain (--num_training_jobs) continue one another; those that find nothing left to do end at
    once. Calling it again goes on from the last checkpoint. With --training_algo=dpo the main is
    nemo_skills.training.start_dpo. With --nemo_model the result is a NeMo checkpoint as well.
    With --recipe arguments have the keys of recipes: ns recipe show NAME.
    """
    resolved = resolve_recipe(own, nodes, main_args.normalise(ctx.args))
    own = resolved.own
    paths = [own.output_dir, *own.training_data, *own.validation_data]
    given = (own.hf_model, own.nemo_model, own.final_hf_path, own.final_nemo_path, cluster.log_dir)
    paths += filter(None, given)
    request = Request(
        cluster=resolve_cluster(cluster, paths),
        log_dir=cluster.log_dir or str(PurePosixPath(own.output_dir) / "training-logs"),
        job=job,
        nodes=resolved.nodes,
        own=own,
        wandb=wandb_values(wandb, job.expname, key=bool(os.environ.get("WANDB_API_KEY"))),
        args=resolved.args,
        recipe=resolved.recipe,
    )
    plan = plan_train(request)
    approach(request.cluster)
    if own.num_training_jobs and not job.no_validate:
        local = request.cluster.executor == "none"
        with names_of_recipe(own):
            main_args.validate(MAINS[own.training_algo][1], main_arguments(request), local_files=local)
    try:
        return launch(plan, dry_run=job.dry_run)
    except JobFailedError as error:
        if error.exit_code != UNFINISHED_CODE:
            raise
        raise JobFailedError(
            f"{error}\nThe training is not finished: run the same command again to go on, or with a larger"
            " --num_training_jobs.",
            exit_code=UNFINISHED_CODE,
        ) from None


def plan_train(request: Request) -> Plan:
    """Plan the chain of jobs and the one that averages. Pure, but for looking whether the main is there.

    Raises:
        UserError: the options do not go together, or not with the cluster.
    """
    _check(request)
    own, name = request.own, request.name
    plan = Plan(expname=name, cluster=request.cluster, jobs=(), log_dir=request.log_dir, options=request.job)
    jobs: tuple[Job, ...] = ()
    if own.num_training_jobs:
        start = start_job(name, own, request.cluster)
        first = _training_job(request)
        limit = None if request.job.time_min else time_limit(plan, first)
        if request.cluster.executor == "slurm" and (most := _main_seconds(limit)):
            first = _training_job(request, {"exp_manager.max_time_per_run": _days(most)})
        jobs = chain((first,), own.num_training_jobs - 1)
        if start:
            jobs = (start, replace(jobs[0], after=(start.name,)), *jobs[1:])
    average = Job(
        name=f"{name}{AVERAGE_SUFFIX}",
        components=(
            Component(
                name="main", commands=(_average_command(request),), role=role_with_torch(request.cluster)
            ),
        ),
        after=tuple(job.name for job in jobs[-1:]),
        writes=(f"{request.result}/config.json", *filter(None, (nemo_result(own),))),
    )
    return replace(plan, jobs=(*jobs, average))


def main_arguments(request: Request, more: Mapping[str, object] | None = None) -> tuple[str, ...]:
    """Return the arguments of the main: a recipe's, the wrapper's own, then the user's, which win.

    What the wrapper only assumes, and no option says, a recipe decides.
    """
    own = request.own
    start = start_model(own)
    values: dict[str, object] = {"model.restore_from_path": start} if start or not own.recipe else {}
    for key, files in (("train_ds", own.training_data), ("validation_ds", own.validation_data)):
        if files[1:]:
            values[f"model.data.{key}.file_names"] = list(files)
        elif files:
            values[f"model.data.{key}.file_path"] = files[0]
    values |= {
        "trainer.devices": request.processes,
        "trainer.num_nodes": request.nodes.num_nodes,
        "exp_manager.explicit_log_dir": request.train_dir,
        "exp_manager.name": request.name,
        **request.wandb,
        **(more or {}),
    }
    recipe = {argument_key(arg): arg for arg in request.recipe}
    assumed = [*_ASSUMED, *(["exp_manager.name"] if request.job.expname is None else [])]
    values = {key: value for key, value in values.items() if key not in recipe or key not in assumed}
    # one of the two excludes the other
    given = [key.rpartition(".")[0] for key in values if key.startswith("model.data.")]
    recipe_args = [
        arg for key, arg in recipe.items() if key not in {f"{ds}.{n}" for ds in given for n in _FILES}
    ]
    file = [f"--{flag}={text}" for flag, text in _config_flags(own).items() if text]
    return (*file, *recipe_args, *encoded(values), *request.args)


def wandb_values(options: WandbOptions, expname: str | None, *, key: bool) -> dict[str, object]:
    """Return the main's arguments about Weights & Biases; `key` tells whether there is one."""
    if options.disable_wandb:
        return {}
    if not key and not options.wandb_project:
        LOG.info("no logging to W&B: WANDB_API_KEY is not set")
        return {}
    given = {"project": options.wandb_project, "group": options.wandb_group, "name": expname}
    values: dict[str, object] = {"exp_manager.create_wandb_logger": True}
    return values | {f"exp_manager.wandb_logger_kwargs.{k}": v for k, v in given.items() if v}


def _training_job(request: Request, more: Mapping[str, object] | None = None) -> Job:
    own, nodes = request.own, request.nodes
    on_cpu = own.training_device == "cpu"
    argv: Argv = ("-m", MAINS[own.training_algo][0], *main_arguments(request, more))
    if nodes.num_nodes * request.processes > 1:
        counts = (f"--processes={request.processes}", f"--nodes={nodes.num_nodes}")
        argv = ("-m", LAUNCHER, *counts, "--", *argv)
    main = Component(
        name="main",
        commands=((PYTHON, *argv),),
        role=role_with_torch(request.cluster),
        nodes=nodes.num_nodes,
        gpus=0 if on_cpu else nodes.num_gpus,
        env=(("CUDA_VISIBLE_DEVICES", ""),) if on_cpu else (),
    )
    return Job(
        name=request.name,
        components=(main,),
        unfinished_code=UNFINISHED_CODE,
        writes=(f"{request.train_dir}/finished.json",),
    )


def _average_command(request: Request) -> Argv:
    values: dict[str, object] = {
        "checkpoints_dir": f"{request.train_dir}/checkpoints",
        "output": request.result,
    }
    if request.own.average_steps:
        values["steps"] = list(request.own.average_steps)
    if nemo := nemo_result(request.own):
        values["nemo_output"] = nemo
    return (PYTHON, "-m", AVERAGE, *encoded(values))


def _config_flags(own: TrainOptions) -> dict[str, str | None]:
    return {"config-path": own.config_path, "config-name": own.config_name}


def _main_seconds(limit: str | None) -> int | None:
    """Return how long the main may run within a time limit."""
    total = seconds(limit) if limit else None
    return total - min(_MARGIN_S, total // _MARGIN_SHARE) if total else None


def _days(total: int) -> str:
    """Return a time as days, hours, minutes and seconds."""
    minutes, rest = divmod(total, 60)
    return f"{minutes // 1440:02d}:{minutes // 60 % 24:02d}:{minutes % 60:02d}:{rest:02d}"


def _check(request: Request) -> None:
    """Refuse options that do not go together, all at once."""
    own, nodes = request.own, request.nodes
    trains = own.num_training_jobs > 0
    module = MAINS[own.training_algo][0]
    checks = (
        (own.backend != "torch", f"--backend={own.backend} is not available yet; --backend=torch is"),
        (
            trains and not (start_model(own) or own.recipe),
            "--hf_model or --nemo_model is missing: the folder of the model to start from",
        ),
        (bool(own.hf_model and own.nemo_model), "give --hf_model or --nemo_model, not both"),
        (trains and not _has_data(request), "--training_data is missing: the files to train on"),
        (
            (own.final_nemo_path or "").endswith(".nemo"),
            "--final_nemo_path names a folder; ns convert makes .nemo files",
        ),
        (
            request.job.dependent_jobs > 0,
            "--dependent_jobs: how many jobs train is said by --num_training_jobs",
        ),
        (
            nodes.num_nodes > 1 and request.cluster.executor != "slurm",
            f"--num_nodes={nodes.num_nodes} needs a Slurm cluster (--cluster)",
        ),
        (own.training_device == "cuda" and not nodes.num_gpus, "--training_device=cuda needs --num_gpus"),
        (bool(own.config_path) and not own.config_name, "--config_path needs --config_name"),
        (
            importlib.util.find_spec(module) is None,
            f"--training_algo={own.training_algo} is not available yet",
        ),
    )
    if problems := [text for wrong, text in checks if wrong]:
        raise UserError("\n".join(problems))
    owned = {
        "model.restore_from_path": "--hf_model or --nemo_model",
        "exp_manager.explicit_log_dir": "--output_dir",
        "trainer.devices": "--num_gpus",
        "trainer.num_nodes": "--num_nodes",
    }
    for key, files in (("train_ds", own.training_data), ("validation_ds", own.validation_data)):
        if files:
            option = "--training_data" if key == "train_ds" else "--validation_data"
            owned |= {f"model.data.{key}.{name}": option for name in ("file_path", "file_names")}
    refuse_owned(request.args, owned)


def _has_data(request: Request) -> bool:
    """Whether files to train on are given; a file of arguments may name them too."""
    if request.own.training_data or request.own.config_name:
        return True
    if any("train_ds.file_" in arg for arg in request.recipe):
        return True
    return any("model.data" in arg or arg.startswith("--config") for arg in request.args)
