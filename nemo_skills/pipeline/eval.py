"""`ns eval`: a model's scores on benchmarks."""

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from nemo_skills.core.errors import JobFailedError, UserError
from nemo_skills.core.log import get_logger
from nemo_skills.pipeline import main_args
from nemo_skills.pipeline.answering import MAIN, SCHEMA, Progress, find_progress, refuse_owned
from nemo_skills.pipeline.benchmarks import Target, find_targets
from nemo_skills.pipeline.cluster.resolve import resolve_cluster
from nemo_skills.pipeline.eval_plan import plan_eval
from nemo_skills.pipeline.eval_request import (
    EVALUATE,
    SCORE,
    Judge,
    Request,
    answering_args,
    grading_args,
    judging_args,
    scoring_args,
)
from nemo_skills.pipeline.launch.layout import CODE_TARGET, host_path
from nemo_skills.pipeline.launch.plan import Plan
from nemo_skills.pipeline.launch.records import Record
from nemo_skills.pipeline.launch.submit import approach, launch
from nemo_skills.pipeline.options import (
    ClusterOptions,
    EvalOptions,
    JobOptions,
    JudgeOptions,
    ServerOptions,
)
from nemo_skills.pipeline.result_files import read_results
from nemo_skills.pipeline.result_table import show_table
from nemo_skills.pipeline.servers.component import engine_type
from nemo_skills.pipeline.wrapper import Context, wrap_arguments, wrapper

LOG = get_logger(__name__)
_SCORE_SCHEMA = f"{SCORE}:ScoreConfig"
_GRADER_SCHEMA = f"{EVALUATE}:EvaluateConfig"
_OWNED = {
    "input_file": "--benchmarks and --data_dir",
    "output_file": "--output_dir",
    "inference.random_seed": "--benchmarks=name:k",
    "num_chunks": "--num_jobs",
    "chunk_id": "--num_jobs",
}


@wrapper(main=MAIN, schema=SCHEMA)
def eval(  # noqa: A001 (the command is called so)
    ctx: Context,
    cluster: ClusterOptions,
    job: JobOptions,
    server: ServerOptions,
    own: EvalOptions,
    judge: JudgeOptions,
) -> Record | None:
    """Let a model answer benchmarks, and grade and score its answers.

    Answers are in `<output_dir>/eval-results/<benchmark>/output.jsonl`, or with k samples in
    `output-rs0.jsonl` and so on, and the scores beside them in `metrics.json`. Calling it again finishes what
    is missing.
    """
    given = (own.output_dir, own.data_dir, server.model, judge.judge_model, cluster.log_dir)
    config = resolve_cluster(cluster, filter(None, given))
    request = Request(
        cluster=config,
        log_dir=cluster.log_dir or str(PurePosixPath(own.output_dir) / "eval-logs"),
        job=job,
        server=server,
        own=own,
        targets=find_targets(own, config),
        args=_main_args(ctx, own),
        grader_args=_split(own.grader_args),
        score_args=_split(own.score_args),
        judge=_judge(judge, rerun=own.rerun_done),
    )
    return _run(request)


def _run(request: Request) -> Record | None:
    job = request.job
    plan_eval(request, Progress())  # mistakes in options come before anything is looked at
    if engine_type(request.server, request.cluster) == "hf" and any(
        target.samples for target in request.targets
    ):
        LOG.warning("hf servers sample only if the model's generation_config.json says do_sample: true")
    approach(request.cluster)
    if not job.no_validate:
        _validate(request)
    progress = _progress(request)
    plan = plan_eval(request, progress)
    _tell(plan, progress, request.results_dir)
    waits = request.cluster.executor != "slurm" and not job.dry_run
    try:
        record = launch(plan, dry_run=job.dry_run, found=progress.found) if plan.jobs else None
    except JobFailedError:
        LOG.error("not everything could be done; the same command does what is missing")
        show_scores(request)
        raise
    if waits:
        show_scores(request)
    return record


def show_scores(request: Request) -> None:
    """Print the scores that there are of the benchmarks of a request, whose files are on this machine."""
    folder = Path(host_path(request.cluster, request.results_dir))
    names = [target.name for target in request.targets]
    try:
        found = [one for one in read_results([folder.parent]) if one.report.benchmark in names]
    except UserError as error:  # what is wrong with some file must not hide what became of the jobs
        LOG.warning("the scores cannot be shown: %s", error)
        return
    if found:
        show_table(found)


def _main_args(ctx: Context, own: EvalOptions) -> tuple[str, ...]:
    args = main_args.normalise(ctx.args)
    refuse_owned(args, _OWNED)
    return (*args, "++skip_filled=false") if own.rerun_done else args


def _judge(options: JudgeOptions, *, rerun: bool) -> Judge | None:
    if options == JudgeOptions():
        return None
    if not options.judge_server_type:
        raise UserError(
            "--judge_server_type is missing: a judge needs a server, as --server_type says for the model"
        )
    server = ServerOptions(
        model=options.judge_model,
        server_type=options.judge_server_type,
        server_address=options.judge_server_address,
        server_gpus=options.judge_server_gpus,
        server_nodes=options.judge_server_nodes,
        server_args=options.judge_server_args,
    )
    args = _split(options.judge_args)
    refuse_owned(args, dict.fromkeys(("input_file", "output_file"), "--judge_model and its like"))
    return Judge(server=server, args=(*args, "++skip_filled=false") if rerun else args)


def _split(text: str) -> tuple[str, ...]:
    return main_args.normalise(wrap_arguments(text).args)


def _validate(request: Request) -> None:
    """Check the arguments of all mains that the jobs will run."""
    local = request.cluster.executor == "none"
    first = {part.target.name: part for part in reversed(request.parts())}
    main_args.validate(_SCORE_SCHEMA, scoring_args(request), local_files=local)
    for part in first.values():
        main_args.validate(SCHEMA, answering_args(request, part), local_files=local)
        main_args.validate(_GRADER_SCHEMA, grading_args(request, part.target, [part.path]), local_files=local)
        if part.judged:
            main_args.validate(SCHEMA, judging_args(request, part), local_files=local)


def _progress(request: Request) -> Progress:
    """Find out what is done, and check that the data is there."""
    parts = request.parts()
    inputs = {part.path: part.answers for part in parts} | {
        part.answers: part.target.input_file for part in parts
    }
    data = {target.input_file: target for target in request.targets}
    others = [
        path(target) for target in request.targets for path in (request.metrics_file, request.graded_mark)
    ]
    progress = find_progress(
        request.cluster, inputs, request.job.run_after, [*others, *filter(_can_be_seen, data)]
    )
    assert progress.found is not None
    if not request.job.run_after:  # which may prepare the data
        missing = [t for path, t in data.items() if _can_be_seen(path) and path not in progress.found.exists]
        _complain(missing, request)
    return replace(progress, done=frozenset()) if request.own.rerun_done else progress


def _can_be_seen(path: str) -> bool:
    return not PurePosixPath(path).is_relative_to(CODE_TARGET)


def _complain(missing: Sequence[Target], request: Request) -> None:
    """Say how to get data that is missing."""
    if not missing:
        return
    own, cluster = request.own, request.cluster
    options = {
        "data_dir": PurePosixPath(missing[0].input_file).parent.parent,
        "split": own.split,
        "extra_datasets": own.extra_datasets,
        "cluster": cluster.path if cluster.executor != "none" else None,
    }
    names = [target.name for target in missing]
    words = [*names, *(f"--{name}={value}" for name, value in options.items() if value)]
    absent = (f"benchmark {t.name} is not prepared: there is no {t.input_file}\n" for t in missing)
    raise UserError(f"{''.join(absent)}Prepare it with: ns prepare_data {shlex.join(words)}")


def _tell(plan: Plan, progress: Progress, folder: str) -> None:
    """Say what is not done because it is done, or will be."""
    if waiting := {
        f"{q.job} ({q.id}, {q.state})" for q in progress.queued.values() if q.id not in plan.replaces
    }:
        LOG.info("queued by an earlier call, not submitted again: %s", ", ".join(sorted(waiting)))
    if not plan.jobs and not progress.queued:
        LOG.info(
            "everything is done; --rerun_done does it again, with other arguments of models or judges too"
        )
    elif progress.done:
        names = sorted(str(PurePosixPath(path).relative_to(folder)) for path in progress.done)
        LOG.info("already done, not run again: %s", ", ".join(names))
