"""Which jobs `ns eval` plans, given what earlier calls have done and queued."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from nemo_skills.core.errors import JobFailedError, UserError
from nemo_skills.pipeline.answering import Progress
from nemo_skills.pipeline.benchmarks import find_targets
from nemo_skills.pipeline.cluster.config import ClusterConfig
from nemo_skills.pipeline.eval_plan import plan_eval
from nemo_skills.pipeline.eval_request import Judge, Request
from nemo_skills.pipeline.launch import local
from nemo_skills.pipeline.launch.plan import Argv, Component, Job, Plan, shell
from nemo_skills.pipeline.launch.survey import Queued, Survey
from nemo_skills.pipeline.options import EvalOptions, JobOptions, ServerOptions

RESULTS = "/out/eval-results"
SLURM = ClusterConfig(name="bare", executor="slurm", container_runtime="none", job_dir="/jobs")
HERE = ClusterConfig(name="none", executor="none")
JUDGE = Judge(server=ServerOptions(server_type="stub", model="j"), args=("++inference.tokens_to_generate=9",))


def request_for(
    *benchmarks: str, cluster: ClusterConfig = SLURM, judge: Judge | None = None, **own: object
) -> Request:
    options = EvalOptions(
        **{"benchmarks": benchmarks, "output_dir": "/out", "data_dir": "/data"} | own  # type: ignore[arg-type]
    )
    return Request(
        cluster=cluster,
        log_dir="/out/logs",
        job=JobOptions(expname="e"),
        server=ServerOptions(server_type="stub", model="m"),
        own=options,
        targets=find_targets(options, cluster),
        args=("++inference.temperature=1.0",),
        judge=judge,
    )


def paths(name: str, *seeds: int) -> list[str]:
    return [f"{RESULTS}/{name}/output-rs{seed}.jsonl" for seed in seeds]


def scores(request: Request) -> list[str]:
    """Return the files that are there once everything is scored."""
    return [
        path(target) for path in (request.metrics_file, request.graded_mark) for target in request.targets
    ]


def exists(*files: str) -> Survey:
    return Survey(exists=frozenset(files))


def words(argv: Argv) -> list[str]:
    return [str(word) for word in argv]


def test_one_server_answers_all_benchmarks_and_a_job_without_gpus_scores() -> None:
    request = request_for("gsm8k:0", "math-500:2")
    plan = plan_eval(request, Progress())
    answering, score = plan.jobs
    assert [job.name for job in plan.jobs] == ["e", "e-score"]
    assert [c.name for c in answering.components] == ["server", "main"]
    commands = [words(argv) for argv in answering.main.commands]
    assert [next(w for w in c if "output_file" in w).partition("=")[2] for c in commands] == [
        f"{RESULTS}/gsm8k/output.jsonl",
        *paths("math-500", 0, 1),
    ]
    assert not any("random_seed" in word for word in commands[0])
    assert "++inference.random_seed=1" in commands[2]
    # what the user says comes after the wrapper's own temperature
    assert commands[2].index("++inference.temperature=1.0") > commands[2].index("++inference.temperature=0.7")
    assert answering.main.independent
    assert score.despite_failure
    assert score.after == ("e",)
    assert [c.gpus for c in score.components] == [0]
    metrics = (f"{RESULTS}/gsm8k/metrics.json", f"{RESULTS}/math-500/metrics.json")
    assert score.writes == (*metrics, *map(request.graded_mark, request.targets))
    # old scores must not outlive the results that they were made of
    assert set(answering.main.before[0]) >= set(metrics)
    # the results of others in the folder are their own affair
    assert "++benchmarks=['gsm8k','math-500']" in score.main.commands[-1]


def test_a_second_call_plans_what_is_missing() -> None:
    request = request_for("gsm8k:4", "math-500:2")
    metrics = scores(request)
    everything = frozenset([*paths("gsm8k", 0, 1, 2, 3), *paths("math-500", 0, 1)])
    assert plan_eval(request, Progress(done=everything, found=exists(*metrics))).jobs == ()

    answering, score = plan_eval(
        request, Progress(done=everything - {paths("gsm8k", 2)[0]}, found=exists(*metrics))
    ).jobs
    assert answering.writes == (paths("gsm8k", 2)[0],)
    assert answering.main.before == (("rm", "-f", metrics[0]),)
    assert score.after == (answering.name,)

    for lost in range(len(metrics)):
        some = exists(*metrics[:lost], *metrics[lost + 1 :])
        (score,) = plan_eval(request, Progress(done=everything, found=some)).jobs
        assert score.name == "e-score"


@pytest.mark.parametrize(
    ("judge", "changes"),
    [
        (None, {"grader_args": ("++grader.tolerance=0.1",)}),
        (JUDGE, {"score_args": ("++max_failed_share=1",)}),
        (JUDGE, {"judge": None}),
    ],
)
def test_other_arguments_grade_and_score_again(judge: Judge | None, changes: dict[str, Any]) -> None:
    request = request_for("gsm8k:1", judge=judge)
    done = frozenset(path for part in request.parts() for path in (part.path, part.answers))
    progress = Progress(done=done, found=exists(*scores(request)))
    assert plan_eval(request, progress).jobs == ()
    other = dataclasses.replace(request, **changes)
    (score,) = plan_eval(other, progress).jobs
    assert score.name == "e-score"

    # a job that scores with the old ones neither does what is asked for nor may write at the same time
    waiting = Queued(id="7", state="PENDING", job="e-score", expname="e")
    queued = {other.metrics_file(other.targets[0]): waiting}
    plan = plan_eval(other, Progress(done=done, queued=queued, found=exists()))
    assert (plan.jobs[0].after_ids, plan.replaces) == (("7",), ())


def test_jobs_in_the_queue_are_not_planned_again() -> None:
    request = request_for("gsm8k:2")
    running = Queued(id="1", state="RUNNING", job="e", expname="e")
    scoring = Queued(id="2", state="PENDING", job="e-score", expname="e")
    queued = {paths("gsm8k", 0)[0]: running} | dict.fromkeys(scores(request), scoring)
    nothing = Progress(done=frozenset(paths("gsm8k", 1)), queued=queued, found=exists())
    assert plan_eval(request, nothing).jobs == ()

    plan = plan_eval(request, Progress(queued=queued, found=exists()))
    answering, score = plan.jobs
    assert answering.writes == tuple(paths("gsm8k", 1))
    assert (score.after, score.after_ids) == (("e",), ("1",))
    assert plan.replaces == ("2",)


def test_num_jobs_share_the_rows() -> None:
    plan = plan_eval(request_for("gsm8k:2", "math-500:2", num_jobs=2), Progress())
    *answering, score = plan.jobs
    assert [job.name for job in answering] == ["e-0", "e-1"]
    # 1319 + 500 rows each
    assert [job.writes for job in answering] == [
        (paths("gsm8k", i)[0], paths("math-500", i)[0]) for i in (0, 1)
    ]
    assert score.after == ("e-0", "e-1")
    here = plan_eval(request_for("gsm8k:2", num_jobs=2, cluster=HERE), Progress())
    assert [job.name for job in here.jobs] == ["e", "e-score"]


def test_servers_that_cannot_change_their_temperature_are_not_shared() -> None:
    request = request_for("gsm8k:1", "math-500:0", cluster=HERE)
    request = dataclasses.replace(request, server=ServerOptions(server_type="hf", model="m"))
    plan = plan_eval(request, Progress())
    assert [job.name for job in plan.jobs] == ["e-greedy", "e-sampled", "e-score"]
    assert [job.writes for job in plan.jobs[:2]] == [
        (f"{RESULTS}/math-500/output.jsonl",),
        (paths("gsm8k", 0)[0],),
    ]
    # here jobs run one after the other: the second runs whatever becomes of the first
    assert all(job.despite_failure for job in plan.jobs)


def test_a_judge_has_a_job_and_a_server_of_its_own() -> None:
    request = request_for("gsm8k:2", "ifeval", judge=JUDGE)
    answering, judging, score = plan_eval(request, Progress()).jobs
    before = [f"{RESULTS}/gsm8k/unjudged/output-rs{seed}.jsonl" for seed in (0, 1)]
    assert answering.writes == (*before, f"{RESULTS}/ifeval/output.jsonl")
    assert judging.writes == tuple(paths("gsm8k", 0, 1))
    assert judging.after == ("e",)
    assert judging.despite_failure
    assert score.after == ("e", "e-judge")
    grade, ask = (words(argv) for argv in judging.main.commands[:2])
    assert "++eval_type=math" in grade
    assert ask[3:5] == [f"++input_file={before[0]}", f"++output_file={paths('gsm8k', 0)[0]}"]
    assert "++prompt_config=judge/math" in ask
    assert ask[-1] == "++inference.tokens_to_generate=9"
    graders = [w for argv in score.main.commands for w in words(argv) if w.startswith("++eval_type=")]
    assert graders == ["++eval_type=judge", "++eval_type=ifeval"]

    # a judgement that is missing is made again, its answers are not
    done = frozenset([*before, paths("gsm8k", 1)[0], f"{RESULTS}/ifeval/output.jsonl"])
    judging, score = plan_eval(request, Progress(done=done, found=exists())).jobs
    assert judging.writes == (paths("gsm8k", 0)[0],)
    # and answers that change are judged again
    _, judging, _ = plan_eval(request, Progress(done=done - {before[1]}, found=exists())).jobs
    assert judging.writes == tuple(paths("gsm8k", 0, 1))


def test_what_benchmarks_name(tmp_path: Path) -> None:
    own = tmp_path / "mine" / "my_sums"
    own.mkdir(parents=True)
    (own / "__init__.py").write_text(
        "from nemo_skills.dataset.base import BenchmarkDefaults\n"
        "DEFAULTS = BenchmarkDefaults(prompt_config='generic/math', grader='judge',"
        " generation_args=('++inference.tokens_to_generate=7',))\n"
    )
    request = request_for("my_sums:1", "aime:3", "gsm8k", extra_datasets=str(own.parent), judge=JUDGE)
    assert [(t.name, t.seeds) for t in request.targets] == [
        ("my_sums", (0,)),
        ("aime24", (0, 1, 2)),
        ("aime25", (0, 1, 2)),
        ("gsm8k", (None,)),
    ]
    assert request.targets[0].input_file == "/data/my_sums/test.jsonl"
    assert "++inference.tokens_to_generate=7" in plan_eval(request, Progress()).jobs[0].main.commands[0]
    with pytest.raises(UserError, match="my_sums are graded by a model"):
        plan_eval(request_for("my_sums", extra_datasets=str(own.parent)), Progress())


@pytest.mark.parametrize(
    ("benchmarks", "message"),
    [
        (["gsm8"], "Did you mean 'gsm8k'"),
        (["gsm8k:four"], "number of samples"),
        (["aime:4", "aime24:8"], "aime24 twice"),
        ([], "empty"),
    ],
)
def test_mistakes_in_benchmarks(benchmarks: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        request_for(*benchmarks)


def test_relative_data_is_refused_on_a_cluster() -> None:
    with pytest.raises(UserError, match="--data_dir"):
        request_for("gsm8k", data_dir="data")
    assert (
        request_for("gsm8k", data_dir="data", cluster=HERE).targets[0].input_file == "data/gsm8k/test.jsonl"
    )


def test_a_failed_job_ends_only_the_jobs_that_need_it(
    weird_tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(weird_tmp_path)

    def job(name: str, line: str, **options: object) -> Job:
        main = Component(name="main", role="nemo-skills", commands=shell(f"touch {name}; {line}"))
        return Job(name=name, components=(main,), **options)  # type: ignore[arg-type]

    jobs = (
        job("first", "exit 7"),
        job("needs-it", "true", after=("first",)),
        job("despite-it", "exit 8", after=("first",), despite_failure=True),
        job("last", "true", despite_failure=True),
    )
    plan = Plan(expname="e", cluster=HERE, jobs=jobs, log_dir=str(weird_tmp_path / "logs"))
    with pytest.raises(JobFailedError, match="job first: main ended with exit code 7") as failure:
        local.submit(plan)
    assert failure.value.exit_code == 7
    assert {p.name for p in weird_tmp_path.iterdir()} == {"first", "despite-it", "last", "logs"}
