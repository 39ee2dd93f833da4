"""`ns generate`: a model answers every row of a JSONL file."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from nemo_skills.core.errors import UserError
from nemo_skills.core.log import get_logger
from nemo_skills.pipeline import main_args, offline
from nemo_skills.pipeline.answering import (
    MAIN,
    ROLE,
    SCHEMA,
    Progress,
    answering_job,
    argument_key,
    encoded,
    find_progress,
    refuse_owned,
    seed_values,
)
from nemo_skills.pipeline.cluster.config import ClusterConfig
from nemo_skills.pipeline.cluster.resolve import resolve_cluster
from nemo_skills.pipeline.launch.plan import PYTHON, Argv, Component, Job, Plan, chain
from nemo_skills.pipeline.launch.records import Record
from nemo_skills.pipeline.launch.submit import approach, launch
from nemo_skills.pipeline.options import (
    ClusterOptions,
    GenerateOptions,
    HookOptions,
    JobOptions,
    ServerOptions,
)
from nemo_skills.pipeline.servers.component import client_values
from nemo_skills.pipeline.wrapper import Context, wrapper

LOG = get_logger(__name__)

MERGE = "nemo_skills.inference.merge_chunks"
MERGE_SUFFIX = "-merge"
_START_OVER = re.compile(r"=\s*(false|no|off)\s*$", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Request:
    """One call of the wrapper, with its cluster config found and its arguments in valid Hydra grammar."""

    cluster: ClusterConfig
    log_dir: str
    job: JobOptions
    server: ServerOptions
    own: GenerateOptions
    hooks: HookOptions
    args: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Part:
    """One run of the main: a whole output file, or one chunk of it."""

    seed: int | None
    chunk: int | None
    path: str
    """The file that it writes."""

    @property
    def suffix(self) -> str:
        """What tells its job from the others of the plan."""
        seed = "" if self.seed is None else f"-rs{self.seed}"
        return seed + ("" if self.chunk is None else f"-chunk{self.chunk}")


@wrapper(main=MAIN, schema=SCHEMA)
def generate(
    ctx: Context,
    cluster: ClusterOptions,
    job: JobOptions,
    server: ServerOptions,
    own: GenerateOptions,
    hooks: HookOptions,
) -> Record | None:
    """Let a model answer every row of a JSONL file, in `<output_dir>/generation/output.jsonl`.

    With random seeds the files are named `output-rs<seed>.jsonl`. Calling it again finishes what is missing.
    """
    own = _consistent(own, ctx.args)
    paths = [own.input_file, own.output_dir, *filter(None, (server.model, cluster.log_dir))]
    request = Request(
        cluster=resolve_cluster(cluster, paths),
        log_dir=cluster.log_dir or str(PurePosixPath(own.output_dir) / "generation-logs"),
        job=job,
        server=server,
        own=own,
        hooks=hooks,
        args=_checked_args(own, main_args.normalise(ctx.args)),
    )
    plan_generate(request, Progress())  # mistakes in options come before anything is looked at
    approach(request.cluster)
    if not job.no_validate:
        values = _main_values(request, outputs(own)[0])
        local = request.cluster.executor == "none"
        schema = offline.SCHEMA if own.offline else SCHEMA
        main_args.validate(schema, (*values, *request.args), local_files=local)
    if request.cluster.executor == "none":
        _check_input(own.input_file)
    progress = Progress() if own.rerun_done else _progress(request)
    plan = plan_generate(request, progress)
    if progress.queued:
        jobs = sorted(
            {f"{q.job} ({q.id}, {q.state})" for q in progress.queued.values() if q.id not in plan.replaces}
        )
        LOG.info("queued by an earlier call, not submitted again: %s", ", ".join(jobs))
    if not plan.jobs and not progress.queued:
        LOG.info("everything in %s is done; --rerun_done does it again", _folder(own))
    if not plan.jobs:
        return None
    if progress.done:
        names = sorted(PurePosixPath(path).name for path in progress.done)
        LOG.info("already done, not run again: %s", ", ".join(names))
    return launch(plan, dry_run=job.dry_run, found=progress.found)


def outputs(own: GenerateOptions) -> list[Part]:
    """Return the result files that the options ask for."""
    if own.random_seeds and own.num_random_seeds:
        raise UserError("give --random_seeds or --num_random_seeds, not both")
    count = own.num_random_seeds or 0
    seeds = own.random_seeds or tuple(range(own.starting_seed, own.starting_seed + count))
    if not seeds:
        return [Part(seed=None, chunk=None, path=f"{_folder(own)}/output.jsonl")]
    return [Part(seed=seed, chunk=None, path=f"{_folder(own)}/output-rs{seed}.jsonl") for seed in seeds]


def chunks(own: GenerateOptions, output: Part) -> list[Part]:
    """Return the runs that make one result file: itself, or its chunks."""
    if own.num_chunks is None:
        if own.chunk_ids:
            raise UserError("--chunk_ids needs --num_chunks")
        return [output]
    if own.offline:
        raise UserError("--num_chunks is for servers; with --offline the processes share the rows themselves")
    ids = own.chunk_ids or tuple(range(own.num_chunks))
    if beyond := [chunk for chunk in ids if chunk >= own.num_chunks]:
        raise UserError(f"--chunk_ids: {beyond[0]} is not below --num_chunks={own.num_chunks}")
    stem = output.path.removesuffix(".jsonl")
    return [Part(seed=output.seed, chunk=c, path=f"{stem}_chunk_{c}.jsonl") for c in ids]


def plan_generate(request: Request, progress: Progress) -> Plan:
    """Plan what earlier calls have neither done nor queued. Pure."""
    cluster, own = request.cluster, request.own
    todo = [output for output in outputs(own) if output.path not in progress.done]
    name = request.job.expname or "generate"
    replaces: list[str] = []
    if cluster.executor == "slurm":
        jobs = []
        for output in todo:
            more, replaced = _fan_out(request, name, output, progress)
            jobs += more
            replaces += replaced
    else:
        # one after the other in one job: on one machine a second copy of the server would only be in the way
        commands = [c for output in todo for c in _sequence(request, output, progress.done)]
        jobs = [_job(request, name, commands)] if commands else []
    return Plan(
        expname=name,
        cluster=cluster,
        jobs=chain(tuple(jobs), request.job.dependent_jobs if cluster.executor == "slurm" else 0),
        log_dir=request.log_dir,
        options=request.job,
        replaces=tuple(replaces),
    )


def _fan_out(
    request: Request, name: str, output: Part, progress: Progress
) -> tuple[list[Job], Sequence[str]]:
    """Return a job for every missing part of one result file and one that merges chunks.

    The second value are the ids of queued jobs that these make useless.
    """
    queued = progress.queued
    parts = [part for part in chunks(request.own, output) if part.path not in progress.done]
    missing = [part for part in parts if part.path not in queued]
    jobs = [
        replace(_job(request, f"{name}{part.suffix}", [_command(request, part)]), writes=(part.path,))
        for part in missing
    ]
    merge = _merge(request.own, output)
    merging = queued.get(output.path)
    if not merge or (merging and not missing):
        return jobs, ()
    job = Job(
        name=f"{name}{output.suffix}{MERGE_SUFFIX}",
        components=(Component(name="main", commands=(merge,), role=ROLE),),
        after=tuple(job.name for job in jobs),
        after_ids=tuple(queued[part.path].id for part in parts if part.path in queued),
        writes=(output.path,),
    )
    # a merge of an earlier call waits for a part that has failed or was cancelled; anything else stays
    useless = merging and merging.job.endswith(MERGE_SUFFIX) and merging.state == "PENDING"
    return [*jobs, job], [merging.id] if merging and useless else ()


def _sequence(request: Request, output: Part, done: frozenset[str]) -> list[Argv]:
    parts = [part for part in chunks(request.own, output) if part.path not in done]
    commands = [_command(request, part) for part in parts]
    merge = _merge(request.own, output)
    return [*commands, merge] if merge else commands


def _job(request: Request, name: str, commands: Sequence[Argv]) -> Job:
    if request.own.offline:
        main = offline.offline_component(request.server, request.hooks, request.cluster, commands)
        return Job(name=name, components=(main,))
    return answering_job(name, commands, server=request.server, hooks=request.hooks, cluster=request.cluster)


def _command(request: Request, part: Part) -> Argv:
    module = offline.MAIN if request.own.offline else MAIN
    argv: Argv = (PYTHON, "-m", module, *_main_values(request, part), *request.args)
    if part.chunk is None:
        return argv
    return (*argv, f"++num_chunks={request.own.num_chunks}", f"++chunk_id={part.chunk}")


def _merge(own: GenerateOptions, output: Part) -> Argv | None:
    """Return the command that puts chunks together; a call for some chunks leaves that to one for all."""
    if own.num_chunks is None or own.chunk_ids:
        return None
    values = encoded({"output_file": output.path, "num_chunks": own.num_chunks})
    return (PYTHON, "-m", MERGE, *values)


def _main_values(request: Request, part: Part) -> list[str]:
    """Return the arguments that the wrapper itself gives to the main."""
    output = part.path
    if part.chunk is not None:
        output = part.path.removesuffix(f"_chunk_{part.chunk}.jsonl") + ".jsonl"
    values: dict[str, object] = {"input_file": request.own.input_file, "output_file": output}
    if request.own.offline:
        values |= offline.offline_values(request.server, request.cluster)
    else:
        values |= client_values(request.server, request.cluster)
    return encoded(values | seed_values(part.seed))


def _folder(own: GenerateOptions) -> str:
    return str(PurePosixPath(own.output_dir) / "generation")


def _progress(request: Request) -> Progress:
    own = request.own
    inputs = {p.path: own.input_file for output in outputs(own) for p in (output, *chunks(own, output))}
    return find_progress(request.cluster, inputs, request.job.run_after)


def _consistent(own: GenerateOptions, args: Sequence[str]) -> GenerateOptions:
    """Take `++skip_filled=false` for what it means to the wrapper too: do it again."""
    starts_over = any(argument_key(arg) == "skip_filled" and _START_OVER.search(arg) for arg in args)
    return replace(own, rerun_done=True) if starts_over else own


def _checked_args(own: GenerateOptions, args: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse arguments that are the wrapper's to give, and add what its options mean to the main."""
    owned = {"input_file": "--input_file", "output_file": "--output_dir"}
    owned |= {"num_chunks": "--num_chunks", "chunk_id": "--chunk_ids"}
    if outputs(own)[0].seed is not None:
        owned["inference.random_seed"] = "--random_seeds or --starting_seed"
    refuse_owned(args, owned)
    return (*args, "++skip_filled=false") if own.rerun_done else args


def _check_input(path: str) -> None:
    if any(mark in path for mark in "*?[,"):
        return  # several files: the main resolves them
    if not Path(path).is_file():
        raise UserError(f"--input_file: {path} does not exist or is no file")
