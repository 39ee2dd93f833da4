"""The jobs of `ns eval`: answers, their judgement by a model, grading and scores. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from nemo_skills.core.errors import UserError
from nemo_skills.pipeline.answering import MAIN, ROLE, Progress, answering_job, encoded
from nemo_skills.pipeline.benchmarks import Target
from nemo_skills.pipeline.eval_request import (
    EVALUATE,
    GRADED,
    SCORE,
    Part,
    Request,
    answering_args,
    grading_args,
    judging_args,
    scoring_args,
)
from nemo_skills.pipeline.launch.plan import PYTHON, Argv, Component, Job, Plan, chain
from nemo_skills.pipeline.options import HookOptions
from nemo_skills.pipeline.servers.component import engine_type
from nemo_skills.pipeline.servers.sandbox import sandbox_component

SCORE_SUFFIX = "-score"
# an older mark would later pass for that of the scores, and older scores for those of a newer mark
_FORGET = f'for folder; do rm -f -- "$folder"/metrics.json "$folder"/{GRADED}*; done'
_ROWS = 1000
"""Taken for the length of a benchmark of unknown length."""


def plan_eval(request: Request, progress: Progress) -> Plan:
    """Plan what earlier calls have neither done nor queued.

    Raises:
        UserError: the options do not go together.
    """
    alone = [t.name for t in request.targets if t.benchmark.defaults.grader == "judge" and not request.judge]
    if alone:
        raise UserError(
            f"answers to {', '.join(alone)} are graded by a model: give --judge_server_type and so on"
        )
    missing = [
        p for p in request.parts() if p.answers not in progress.done and p.answers not in progress.queued
    ]
    unjudged = [
        part
        for part in request.parts()
        if part.judged and (part in missing or not {part.path} & (progress.done | progress.queued.keys()))
    ]
    answering = [
        made
        for name, parts in _by_sampling(request, missing)
        for made in _spread(request, name, parts, _answering_job)
    ]
    judging = [
        _after(job, parts, answering, progress)
        for job, parts in _spread(request, f"{request.name}-judge", unjudged, _judging_job)
    ]
    made = [*(job for job, _ in answering), *judging]
    score, replaces = _score(request, progress, made)
    on_slurm = request.cluster.executor == "slurm"
    return Plan(
        expname=request.name,
        cluster=request.cluster,
        jobs=chain((*made, *score), request.job.dependent_jobs if on_slurm else 0),
        log_dir=request.log_dir,
        options=request.job,
        replaces=replaces,
    )


def _by_sampling(request: Request, parts: Sequence[Part]) -> list[tuple[str, list[Part]]]:
    """Return names of jobs, and the parts that may share a server."""
    greedy = [part for part in parts if part.seed is None]
    sampled = [part for part in parts if part.seed is not None]
    # this server takes the temperature of its first request for all others
    by_hf = engine_type(request.server, request.cluster) == "hf" and not request.server.server_address
    if by_hf and greedy and sampled:
        return [(f"{request.name}-greedy", greedy), (f"{request.name}-sampled", sampled)]
    return [(request.name, list(parts))]


_Made = list[tuple[Job, list[Part]]]


def _spread(
    request: Request, name: str, parts: Sequence[Part], make: Callable[[Request, str, Sequence[Part]], Job]
) -> _Made:
    """Share parts among jobs, so that each has about as many rows."""
    # on one machine a second copy of the server would only be in the way
    count = min(request.own.num_jobs if request.cluster.executor == "slurm" else 1, len(parts))
    shares: list[list[Part]] = [[] for _ in range(count)]
    for part in sorted(parts, key=_rows, reverse=True):
        min(shares, key=lambda share: sum(map(_rows, share))).append(part)
    names = [name] if count == 1 else [f"{name}-{index}" for index in range(count)]
    ordered = [[part for part in parts if part in share] for share in shares]
    return [(make(request, own, share), share) for own, share in zip(names, ordered, strict=True)]


def _rows(part: Part) -> int:
    return part.target.benchmark.defaults.rows or _ROWS


def _answering_job(request: Request, name: str, parts: Sequence[Part]) -> Job:
    commands = [answering_command(request, part) for part in parts]
    job = answering_job(name, commands, server=request.server, hooks=HookOptions(), cluster=request.cluster)
    writes = tuple(part.answers for part in parts)
    # the answers of another job are not needed for these
    return replace(_outdating(request, job, parts), writes=writes, despite_failure=True)


def _judging_job(request: Request, name: str, parts: Sequence[Part]) -> Job:
    assert request.judge is not None
    commands = [
        c
        for part in parts
        for c in (_grading(request, part.target, [part.answers]), judging_command(request, part))
    ]
    job = answering_job(
        name, commands, server=request.judge.server, hooks=HookOptions(), cluster=request.cluster
    )
    return replace(_outdating(request, job, parts), writes=tuple(part.path for part in parts))


def _outdating(request: Request, job: Job, parts: Sequence[Part]) -> Job:
    """Let a job remove scores that will no longer be true: scores that exist are those of all results."""
    files = dict.fromkeys(request.metrics_file(part.target) for part in parts)
    main = replace(job.main, before=(("rm", "-f", *files), *job.main.before))
    return replace(job, components=tuple(main if c is job.main else c for c in job.components))


def _after(job: Job, parts: Sequence[Part], answering: _Made, progress: Progress) -> Job:
    """Let a judge wait for the answers that it judges."""
    names = tuple(other.name for other, share in answering if any(part in share for part in parts))
    waiting = (progress.queued[part.answers].id for part in parts if part.answers in progress.queued)
    return replace(job, after=names, after_ids=tuple(dict.fromkeys(waiting)), despite_failure=True)


def _score(request: Request, progress: Progress, made: Sequence[Job]) -> tuple[list[Job], tuple[str, ...]]:
    """Return the job that grades and scores what is there in the end, and ids of jobs that it replaces."""
    metrics = {request.graded_mark(target): request.metrics_file(target) for target in request.targets}
    exists = progress.found.exists if progress.found else frozenset()
    waiting = {path: job for path, job in progress.queued.items() if path in metrics}
    # those that score with other arguments, too
    queued = {job.id for job in progress.queued.values()} - {job.id for job in waiting.values()}
    if not made and all(
        mark in waiting or ({mark, path} <= exists and not queued) for mark, path in metrics.items()
    ):
        return [], ()
    job = Job(
        name=f"{request.name}{SCORE_SUFFIX}",
        components=(*_sandbox(request), _scorer(request)),
        after=tuple(job.name for job in made),
        after_ids=tuple(sorted(queued)),
        despite_failure=True,
        writes=(*metrics.values(), *metrics),
    )
    return [job], tuple(dict.fromkeys(job.id for job in waiting.values() if job.state == "PENDING"))


def _sandbox(request: Request) -> tuple[Component, ...]:
    return (sandbox_component(),) if any(t.benchmark.defaults.needs_sandbox for t in request.targets) else ()


def _scorer(request: Request) -> Component:
    grading = [
        (
            *_grading(
                request,
                target,
                [p.path for p in request.parts() if p.target is target],
                judged=request.judges(target),
            ),
            *encoded({"done_mark": request.graded_mark(target)}),
        )
        for target in request.targets
    ]
    score: Argv = (PYTHON, "-m", SCORE, *scoring_args(request))
    folders = [f"{request.results_dir}/{target.name}" for target in request.targets]
    return Component(
        name="main",
        role=ROLE,
        before=(("bash", "-c", _FORGET, "forget", *folders),),
        commands=(*grading, score),
        independent=True,
    )


def answering_command(request: Request, part: Part) -> Argv:
    """Return the command that lets the model answer a benchmark once."""
    return (PYTHON, "-m", MAIN, *answering_args(request, part))


def judging_command(request: Request, part: Part) -> Argv:
    """Return the command that lets the judge look at the answers of one run."""
    return (PYTHON, "-m", MAIN, *judging_args(request, part))


def _grading(request: Request, target: Target, files: Sequence[str], *, judged: bool = False) -> Argv:
    return (PYTHON, "-m", EVALUATE, *grading_args(request, target, files, judged=judged))
