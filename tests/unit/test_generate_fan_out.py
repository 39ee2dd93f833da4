"""Which jobs `ns generate` plans for a Slurm cluster, given what earlier calls have done and queued."""

import pytest

from nemo_skills.pipeline.cluster.config import ClusterConfig
from nemo_skills.pipeline.generate import Progress, Request, plan_generate
from nemo_skills.pipeline.launch.plan import Plan
from nemo_skills.pipeline.launch.survey import Queued
from nemo_skills.pipeline.options import GenerateOptions, HookOptions, JobOptions, ServerOptions

FOLDER = "/out/my_chunk_1/generation"
CHUNKS = [f"{FOLDER}/output_chunk_{i}.jsonl" for i in range(3)]
WHOLE = f"{FOLDER}/output.jsonl"


def planned(progress: Progress, args: tuple[str, ...] = (), **own: object) -> Plan:
    options = {"input_file": "/in.jsonl", "output_dir": "/out/my_chunk_1", "num_chunks": 3} | own
    request = Request(
        cluster=ClusterConfig(name="bare", executor="slurm", container_runtime="none", job_dir="/jobs"),
        log_dir="/out/logs",
        job=JobOptions(expname="g"),
        server=ServerOptions(server_type="stub", model="m"),
        own=GenerateOptions(**options),  # type: ignore[arg-type]
        hooks=HookOptions(),
        args=args,
    )
    return plan_generate(request, progress)


def queued(number: int, job: str, state: str = "RUNNING") -> Queued:
    return Queued(id=str(number), state=state, job=job, expname="g")


MERGE = queued(4, "g-merge", "PENDING")


def test_a_first_call_plans_all_chunks_and_a_merge() -> None:
    plan = planned(Progress())
    assert [job.name for job in plan.jobs] == ["g-chunk0", "g-chunk1", "g-chunk2", "g-merge"]
    assert [job.writes for job in plan.jobs] == [(path,) for path in (*CHUNKS, WHOLE)]
    *_, merge = plan.jobs
    assert merge.after == ("g-chunk0", "g-chunk1", "g-chunk2")
    # a folder's name does not change what a chunk is called
    assert f"++output_file={WHOLE}" in plan.jobs[0].main.commands[0]


@pytest.mark.parametrize("merging", [{}, {WHOLE: MERGE}], ids=["no merge", "a merge that waits in vain"])
def test_a_missing_chunk_is_added_to_those_in_the_queue(merging: dict[str, Queued]) -> None:
    plan = planned(Progress(done=frozenset({CHUNKS[0]}), queued={CHUNKS[2]: queued(3, "g-chunk2")} | merging))
    chunk, merge = plan.jobs
    assert (chunk.name, merge.name) == ("g-chunk1", "g-merge")
    assert (merge.after, merge.after_ids) == (("g-chunk1",), ("3",))
    assert plan.replaces == (("4",) if merging else ())


def test_nothing_is_missing() -> None:
    chunks = {path: queued(i, f"g-chunk{i}") for i, path in enumerate(CHUNKS)}
    assert planned(Progress(queued=chunks | {WHOLE: MERGE})).jobs == ()
    assert planned(Progress(done=frozenset(CHUNKS), queued={WHOLE: MERGE})).jobs == ()
    assert planned(Progress(done=frozenset({WHOLE}))).jobs == ()
    # the merge alone was lost
    (merge,) = planned(Progress(queued=chunks)).jobs
    assert (merge.after, merge.after_ids) == ((), ("0", "1", "2"))


def test_a_run_without_chunks_is_not_taken_for_a_merge() -> None:
    plan = planned(Progress(queued={WHOLE: queued(9, "g", "PENDING")}))
    assert [job.name for job in plan.jobs] == ["g-chunk0", "g-chunk1", "g-chunk2", "g-merge"]
    assert plan.replaces == ()  # the submission refuses: two jobs would write the same file


def test_seeds_fan_out_too() -> None:
    names = [job.name for job in planned(Progress(), num_random_seeds=2, num_chunks=None).jobs]
    assert names == ["g-rs0", "g-rs1"]


@pytest.mark.parametrize(
    ("args", "names"),
    [
        ((), ["server", "main"]),
        (("++code_execution=true",), ["server", "sandbox", "main"]),
        (("++code_execution=false",), ["server", "main"]),
        (("++code_execution=True", "++sandbox_address=http://127.0.0.1:6000"), ["server", "main"]),
    ],
)
def test_code_that_runs_needs_a_sandbox(args: tuple[str, ...], names: list[str]) -> None:
    first, *_ = planned(Progress(), args).jobs
    assert [component.name for component in first.components] == names
