"""`ns convert`: a model in another format."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from nemo_skills.core.errors import UserError
from nemo_skills.core.log import get_logger
from nemo_skills.pipeline import main_args
from nemo_skills.pipeline.answering import encoded, refuse_owned
from nemo_skills.pipeline.cluster.config import ClusterConfig
from nemo_skills.pipeline.cluster.resolve import resolve_cluster
from nemo_skills.pipeline.cluster.roles import role_with_torch
from nemo_skills.pipeline.launch.layout import host_path
from nemo_skills.pipeline.launch.plan import PYTHON, Argv, Component, Job, Plan
from nemo_skills.pipeline.launch.records import Record
from nemo_skills.pipeline.launch.submit import approach, launch
from nemo_skills.pipeline.options import ClusterOptions, ConvertOptions, JobOptions, NodeOptions
from nemo_skills.pipeline.servers.trtllm import launcher_problems
from nemo_skills.pipeline.wrapper import Context, wrapper

LOG = get_logger(__name__)

NAME = "convert"
MAIN = "nemo_skills.conversion.nemo_to_hf"
SCHEMA = "nemo_skills.conversion.config:ConvertConfig"
_TRTLLM = "nemo_skills.conversion.hf_to_trtllm"
MAINS = {
    ("nemo", "hf"): (MAIN, SCHEMA),
    ("hf", "nemo"): ("nemo_skills.conversion.hf_to_nemo", SCHEMA),
    ("hf", "trtllm"): (_TRTLLM, f"{_TRTLLM}:TrtllmConfig"),
}
"""From one format to another: the main, and its config class."""
_INSPECT = "nemo_skills.conversion.inspect"
_LLM_ROLE = "trtllm"
_MPI = "pmix"


@dataclass(frozen=True, kw_only=True)
class Request:
    """One call of the wrapper, with its cluster config found and its arguments in valid Hydra grammar."""

    cluster: ClusterConfig
    log_dir: str
    job: JobOptions
    nodes: NodeOptions
    own: ConvertOptions
    args: tuple[str, ...]

    @property
    def formats(self) -> tuple[str, str]:
        """From which format to which one."""
        return self.own.convert_from, self.own.convert_to

    @property
    def builds_engine(self) -> bool:
        """Whether it is a job for GPUs."""
        return self.own.convert_to == "trtllm"


@wrapper(main=MAIN, schema=SCHEMA)
def convert(
    ctx: Context, cluster: ClusterOptions, job: JobOptions, nodes: NodeOptions, own: ConvertOptions
) -> Record | None:
    """Convert a model from one format to another.

    From nemo to hf, from hf to nemo, and from hf to trtllm; the mains of the latter two are
    nemo_skills.conversion.hf_to_nemo and nemo_skills.conversion.hf_to_trtllm. Only trtllm needs GPUs, those
    that the engine is to run on: tensors are split over the GPUs of a node, layers over nodes.
    """
    paths = [own.input_model, own.output_model, *filter(None, (own.hf_model_name, cluster.log_dir))]
    request = Request(
        cluster=resolve_cluster(cluster, paths),
        log_dir=cluster.log_dir or str(PurePosixPath(own.output_model).parent / "conversion-logs"),
        job=job,
        nodes=nodes,
        own=own,
        args=main_args.normalise(ctx.args),
    )
    plan = plan_convert(request)
    approach(request.cluster)
    if not job.no_validate:
        local = request.cluster.executor == "none"
        main_args.validate(MAINS[request.formats][1], _main_arguments(request), local_files=local)
        check_input(request)
    return launch(plan, dry_run=job.dry_run)


def plan_convert(request: Request) -> Plan:
    """Plan the job. Pure.

    Raises:
        UserError: the options do not go together, or not with the cluster.
    """
    _check(request)
    name, nodes = request.job.expname or NAME, request.nodes
    command: Argv = (PYTHON, "-m", MAINS[request.formats][0], *_main_arguments(request))
    main = Component(name="main", commands=(command,), role=role_with_torch(request.cluster))
    if request.builds_engine:
        several = nodes.num_nodes > 1
        main = Component(
            name="main",
            # on one node the program starts its processes by itself
            commands=(("trtllm-llmapi-launch", *command) if several else command,),
            role=_LLM_ROLE,
            nodes=nodes.num_nodes,
            tasks_per_node=nodes.num_gpus if several else 1,
            gpus=nodes.num_gpus,
            mpi=_MPI if several else None,
        )
    elif nodes.num_gpus:
        LOG.info("no GPUs are asked for: a conversion to %s needs none", request.own.convert_to)
    job = Job(name=name, components=(main,), writes=(request.own.output_model,))
    return Plan(
        expname=name, cluster=request.cluster, jobs=(job,), log_dir=request.log_dir, options=request.job
    )


def check_input(request: Request) -> None:
    """Look at the model where it lies on this machine, before anything is submitted.

    Raises:
        UserError: it is not there, or in another format.
    """
    cluster, own = request.cluster, request.own
    if cluster.ssh_tunnel is not None:
        return
    try:
        path = Path(host_path(cluster, own.input_model))
    except UserError:  # the job will say that it cannot see it
        return
    if path.exists():
        found = importlib.import_module(_INSPECT).detect_format(path)
        if found != own.convert_from:
            hint = f" Give --convert_from={found}." if (found, own.convert_to) in MAINS else ""
            raise UserError(f"--input_model: {path} is in format {found}, not {own.convert_from}.{hint}")
    elif cluster.executor != "slurm" and not (request.job.run_after or request.job.dry_run):
        raise UserError(f"--input_model: {path} does not exist")


def _main_arguments(request: Request) -> tuple[str, ...]:
    """Return the arguments of the main: the wrapper's own, then the user's, which win."""
    own, nodes = request.own, request.nodes
    values: dict[str, object | None] = {
        "input_model": own.input_model,
        "output_model": own.output_model,
        "model_type": own.model_type,
        "hf_model_name": own.hf_model_name,
        "dtype": own.dtype,
    }
    if request.builds_engine:
        values |= {"tensor_parallel_size": nodes.num_gpus, "pipeline_parallel_size": nodes.num_nodes}
    return (*encoded({key: value for key, value in values.items() if value is not None}), *request.args)


def _check(request: Request) -> None:
    """Refuse options that do not go together, all at once."""
    own, nodes, engine = request.own, request.nodes, request.builds_engine
    if request.formats not in MAINS:
        possible = ", ".join(f"{start} to {end}" for start, end in MAINS)
        way = " Convert it to hf first." if request.formats == ("nemo", "trtllm") else ""
        raise UserError(
            f"--convert_from={own.convert_from} --convert_to={own.convert_to} is not possible.{way}"
            f" Possible: {possible}"
        )
    checks = (
        (
            PurePosixPath(own.input_model) == PurePosixPath(own.output_model),
            "--input_model and --output_model are the same",
        ),
        (engine and not nodes.num_gpus, "--convert_to=trtllm needs --num_gpus: engines are built on GPUs"),
        (
            engine and bool(own.hf_model_name),
            "--hf_model_name is for NeMo models; a Hugging Face folder has config and tokenizer",
        ),
        (
            not engine and nodes.num_nodes > 1,
            f"--num_nodes={nodes.num_nodes}: a conversion to {own.convert_to} runs on one node",
        ),
        (
            engine and nodes.num_nodes > 1 and request.cluster.executor != "slurm",
            f"--num_nodes={nodes.num_nodes} needs a Slurm cluster (--cluster)",
        ),
        (
            request.job.dependent_jobs > 0,
            "--dependent_jobs: a conversion does not go on in another job; raise its time limit",
        ),
    )
    problems = [text for wrong, text in checks if wrong]
    if engine and nodes.num_nodes > 1:
        problems += launcher_problems(_main_arguments(request))
    if problems:
        raise UserError("\n".join(problems))
    owned: Mapping[str, str] = {
        name: f"--{name}" for name in ("input_model", "output_model", "model_type", "hf_model_name", "dtype")
    }
    sizes = {"tensor_parallel_size": "--num_gpus", "pipeline_parallel_size": "--num_nodes"}
    refuse_owned(request.args, {**owned, **sizes})
