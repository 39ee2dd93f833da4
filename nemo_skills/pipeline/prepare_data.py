"""`ns prepare_data`: benchmarks as files of rows, ready to be answered."""

import importlib
from dataclasses import dataclass

from nemo_skills.core.errors import UserError
from nemo_skills.pipeline.benchmarks import data_folder
from nemo_skills.pipeline.cluster.config import ClusterConfig
from nemo_skills.pipeline.cluster.resolve import resolve_cluster
from nemo_skills.pipeline.launch.logdir import default_log_dir
from nemo_skills.pipeline.launch.plan import PYTHON, Argv, Component, Job, Plan
from nemo_skills.pipeline.launch.records import Record
from nemo_skills.pipeline.launch.submit import launch
from nemo_skills.pipeline.options import ClusterOptions, DataOptions, JobOptions, PrepareDataOptions
from nemo_skills.pipeline.wrapper import wrapper

NAME = "prepare_data"
MAIN = "nemo_skills.dataset.prepare"
ROLE = "nemo-skills"


@dataclass(frozen=True, kw_only=True)
class Request:
    """One call of the wrapper, with its cluster config found."""

    cluster: ClusterConfig
    log_dir: str
    job: JobOptions
    argv: Argv


@wrapper()
def prepare_data(
    cluster: ClusterOptions, job: JobOptions, own: PrepareDataOptions, data: DataOptions
) -> Record | None:
    """Prepare benchmarks, in `<data_dir>/<benchmark>/<split>.jsonl`.

    Their files are downloaded from where their authors publish them, or with --source taken from files that
    were downloaded elsewhere. What is there already and unchanged is not prepared again. A benchmark that
    fails does not keep the others from being prepared.
    """
    _check_names(own, data)
    paths = [path for path in (data.data_dir, data.extra_datasets, *own.source) if path]
    config = resolve_cluster(cluster, paths)
    argv = _argv(own, data, config)
    log_dir = cluster.log_dir
    if log_dir is None:
        config, log_dir = default_log_dir(config, job.expname or NAME)
    request = Request(cluster=config, log_dir=log_dir, job=job, argv=argv)
    return launch(plan_prepare_data(request), dry_run=job.dry_run)


def plan_prepare_data(request: Request) -> Plan:
    """Plan the one job. Pure."""
    name = request.job.expname or NAME
    main = Component(name="main", commands=(request.argv,), role=ROLE)
    return Plan(
        expname=name,
        cluster=request.cluster,
        jobs=(Job(name=name, components=(main,)),),
        log_dir=request.log_dir,
        options=request.job,
    )


def _check_names(own: PrepareDataOptions, data: DataOptions) -> None:
    lookup = importlib.import_module("nemo_skills.dataset.lookup")
    if not own.benchmarks:
        names = ", ".join([*lookup.list_benchmarks(data.extra_datasets), *lookup.GROUPS])
        raise UserError(f"which benchmarks? Name some of: {names}")
    lookup.benchmarks_to_prepare(own.benchmarks, data.extra_datasets, own.source)


def _argv(own: PrepareDataOptions, data: DataOptions, cluster: ClusterConfig) -> Argv:
    lookup = importlib.import_module("nemo_skills.dataset.lookup")
    folder = data_folder(data, cluster, str(lookup.default_data_dir()))
    argv: Argv = (PYTHON, "-m", MAIN, *own.benchmarks, "--data_dir", folder)
    if data.extra_datasets:
        argv += ("--extra_datasets", data.extra_datasets)
    if own.split:
        argv += ("--split", own.split)
    if own.source:
        argv += ("--source", *own.source)
    return (*argv, "--overwrite") if own.overwrite else argv
