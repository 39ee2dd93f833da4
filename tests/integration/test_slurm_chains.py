"""Experiments that wait for one another, and outputs made by many jobs, on a real Slurm cluster."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_skills.core.errors import UserError
from tests.integration.generation import untimed, write_rows
from tests.integration.slurm_jobs import BARE, SlurmUser, job
from tests.services.process import wait_until
from tests.services.slurm import SlurmCluster

pytestmark = pytest.mark.service("slurm")


@pytest.fixture
def user(slurm_user: SlurmUser) -> SlurmUser:
    return slurm_user


def in_another_session(user: SlurmUser, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `ns generate` in a process of its own."""
    argv = [sys.executable, "-m", "nemo_skills.pipeline.cli", "generate", f"--cluster={user.config()}"]
    argv += ["--server_type=stub", "--model=m", "--not_exclusive", *words, "++prompt_config=generic/default"]
    return subprocess.run(argv, env=os.environ, capture_output=True, text=True)


def generation(user: SlurmUser, source: str, target: str) -> list[str]:
    return [f"--input_file={user.path(source)}", f"--output_dir={user.path(target)}"]


def test_three_experiments_in_order(user: SlurmUser) -> None:
    write_rows(user.workspace / "in.jsonl", 4)
    first = in_another_session(user, *generation(user, "in.jsonl", "one"), "--expname=one")
    second = in_another_session(
        user, *generation(user, "one/generation/output.jsonl", "two"), "--expname=two", "--run_after=one"
    )
    third = in_another_session(
        user,
        *generation(user, "two/generation/output.jsonl", "three"),
        *("--expname=three", "--run_after=one,two"),
    )
    assert [done.returncode for done in (first, second, third)] == [0, 0, 0], third.stderr
    assert user.wait("three") == {"three": "COMPLETED"}
    assert user.wait("one") | user.wait("two") == {"one": "COMPLETED", "two": "COMPLETED"}
    files = [user.workspace / name / "generation" / "output.jsonl" for name in ("one", "two", "three")]
    assert [len(untimed(file)) for file in files] == [4, 4, 4]
    # what has ended well is nothing to wait for
    user.submit(job("late", "true"), expname="late", run_after=("one", "three"))
    assert user.cluster.job(user.ids("late")["late"])["Dependency"] == "(null)"


def test_nothing_runs_after_a_failure(user: SlurmUser, monkeypatch: pytest.MonkeyPatch) -> None:
    user.submit(job("one", "sleep 1; exit 3"), expname="one")
    user.submit(job("two", "touch ran"), expname="two", run_after=("one",))
    user.submit(job("three", "touch ran"), expname="three", run_after=("two",))
    assert user.wait("three") == {"three": "CANCELLED"}
    assert user.wait("one") | user.wait("two") == {"one": "FAILED", "two": "CANCELLED"}
    assert not list(user.folder.rglob("ran"))
    with pytest.raises(
        UserError, match=r"job one \(\d+\) of experiment 'one' has not succeeded.*one-main.log"
    ):
        user.submit(job("late", "true"), expname="late", run_after=("one",))
    with pytest.raises(
        UserError, match=r"job two \(\d+\) of experiment 'two' has not succeeded, it is CANCEL"
    ):
        user.submit(job("late", "true"), expname="late", run_after=("two",))
    with pytest.raises(UserError, match="Did you mean 'three'"):
        user.submit(job("late", "true"), expname="late", run_after=("thre",))
    assert user.queued() == []
    # a new attempt under the same name counts
    user.submit(job("one", "true"), expname="one")
    user.submit(job("late", "true"), expname="late", run_after=("one",))
    assert user.wait("late") == {"late": "COMPLETED"}


def test_all_unfinished_jobs_of_a_name_are_waited_for(user: SlurmUser) -> None:
    """A loop over benchmarks makes several experiments of one name."""
    hold = {"sbatch_options": {"hold": ""}}
    for name in ("gsm", "aime"):
        user.submit(
            job(name, "true"), job(f"{name}-merge", "true", after=(name,)), expname="eval", cluster=hold
        )
    user.submit(job("summary", "true"), expname="summary", run_after=("eval",))
    waits = user.cluster.job(user.ids("summary")["summary"])["Dependency"]
    assert {word.split("(")[0] for word in waits.split(",")} == {
        f"afterok:{job_id}" for job_id in user.ids("eval").values()
    }


def test_another_kind_of_dependency(user: SlurmUser) -> None:
    user.submit(job("one", "exit 1"), expname="one", cluster={"sbatch_options": {"begin": "now+1"}})
    user.submit(
        job("two", "true"), expname="two", run_after=("one",), cluster={"dependency_type": "afterany"}
    )
    assert user.wait("two") == {"two": "COMPLETED"}


def test_seeds_and_chunks_equal_whole_runs(user: SlurmUser) -> None:
    write_rows(user.workspace / "in.jsonl", 11)
    whole = in_another_session(
        user, *generation(user, "in.jsonl", "whole"), "--num_random_seeds=3", "--expname=whole"
    )
    parts = in_another_session(
        user,
        *generation(user, "in.jsonl", "parts"),
        "--num_random_seeds=3",
        "--num_chunks=2",
        "--expname=parts",
    )
    assert (whole.returncode, parts.returncode) == (0, 0), parts.stderr
    assert set(user.wait("parts").values()) == {"COMPLETED"}
    assert len(user.ids("parts")) == 9
    user.wait("whole")
    names = [f"output-rs{seed}.jsonl" for seed in range(3)]
    outputs = [
        [untimed(user.workspace / folder / "generation" / name) for name in names]
        for folder in ("whole", "parts")
    ]
    assert outputs[0] == outputs[1]
    assert outputs[0][0] != outputs[0][1]
    left = {path.name for path in (user.workspace / "parts/generation").iterdir()}
    assert left == {*names, *(f"{name}.done" for name in names)}


def chunked(user: SlurmUser, *words: str, **options: object) -> int:
    values = {"num_chunks": 3, "not_exclusive": "true", "server_args": "--latency=0.2"} | options
    return user.generate("++max_concurrent_requests=1", *words, **values)


def test_only_the_cancelled_chunk_runs_again(user: SlurmUser, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(user.workspace / "in.jsonl", 15)
    assert chunked(user) == 0
    first = user.ids()
    journal = user.workspace / "out put/generation/output_chunk_1.jsonl-async"
    wait_until("chunk 1 has begun", lambda: journal.exists() and journal.stat().st_size > 0)
    user.cluster.command("scancel", str(first["generate-chunk1"]))
    wait_until("the end", lambda: "RUN" not in user.state(first["generate-chunk1"]))
    wait_until(
        "a state", lambda: (user.exp_dir("generate") / "generate-chunk1/state").read_text() == "cancelled\n"
    )
    # the others still run: a second call adds what is missing, and a merge that waits for all
    assert chunked(user) == 0
    said = capsys.readouterr().err
    assert f"not submitted again: generate-chunk0 ({first['generate-chunk0']}, RUNNING)" in said
    second = {j.name: int(j.slurm_id or 0) for j in user.record().jobs}
    assert second.keys() == {"generate-chunk1", "generate-merge"}
    assert user.wait() == {
        f"generate-{name}": "COMPLETED" for name in ("chunk0", "chunk1", "chunk2", "merge")
    }
    assert user.state(first["generate-merge"]) == "CANCELLED"
    output = user.workspace / "out put/generation/output.jsonl"
    assert [
        f'"id":{i},' in line.replace(" ", "") or f'"id":{i}}}' in line.replace(" ", "")
        for i, line in enumerate(untimed(output))
    ] == [True] * 15
    assert chunked(user) == 0
    assert "is done; --rerun_done" in capsys.readouterr().err


def test_after_the_rest_has_ended_only_what_failed_runs_again(
    user: SlurmUser, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(user.workspace / "in.jsonl", 6)
    trip = "--preprocess_cmd=[[ ! -e /nemo_run/code/trip || $SLURM_JOB_NAME != *chunk2 ]]"
    user.commit("trip", "")
    assert chunked(user, trip, server_args="") == 0
    assert user.wait()["generate-chunk2"] == "FAILED"
    user.git("rm", "--quiet", "trip")
    user.commit("x", "")
    # a session packages once
    assert chunked(user, trip, server_args="", reuse_code="false") == 0
    assert (
        "already done, not run again: output_chunk_0.jsonl, output_chunk_1.jsonl" in capsys.readouterr().err
    )
    assert {j.name for j in user.record().jobs} == {"generate-chunk2", "generate-merge"}
    assert set(user.wait().values()) == {"COMPLETED"}
    assert len(untimed(user.workspace / "out put/generation/output.jsonl")) == 6


def test_what_is_queued_is_not_queued_twice(user: SlurmUser, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(user.workspace / "in.jsonl", 6)
    held = user.config(sbatch_options={"hold": ""})
    assert chunked(user, config=held) == 0
    queued = user.queued()
    assert len(queued) == 4
    assert chunked(user, config=held) == 0
    assert "queued by an earlier call, not submitted again: generate-chunk0" in capsys.readouterr().err
    assert user.queued() == queued
    # done in another way, they would write the same files
    assert chunked(user, config=held, num_chunks=None) == 0
    assert "not submitted again: generate-merge" in capsys.readouterr().err
    assert chunked(user, config=held, rerun_done="true") == 2
    said = capsys.readouterr().err
    assert "other jobs in the queue write the same files" in said
    assert all(job_id in said for job_id in queued)
    assert user.queued() == queued


def test_without_accounting(
    slurm_cluster_noacct: SlurmCluster, weird_tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The queue and the files that jobs leave say enough."""
    monkeypatch.setenv("SLURM_CONF", slurm_cluster_noacct.env["SLURM_CONF"])
    user = SlurmUser(slurm_cluster_noacct, weird_tmp_path)
    user.use(BARE)
    monkeypatch.chdir(user.repository)
    user.submit(job("good", "true"), expname="good")
    user.submit(job("bad", "exit 3"), expname="bad")
    assert user.wait("good") | user.wait("bad") == {"good": "COMPLETED", "bad": "FAILED"}
    user.submit(job("one", "true"), expname="one", run_after=("good",))
    assert user.wait("one") == {"one": "COMPLETED"}
    with pytest.raises(UserError, match="'bad' has not succeeded, it is FAILED"):
        user.submit(job("two", "true"), expname="two", run_after=("good", "bad"))


def test_jobs_that_slurm_has_forgotten(user: SlurmUser, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, code in (("good", 0), ("bad", 3)):
        user.submit(job(name, f"exit {code}"), expname=name)
    user.wait("good"), user.wait("bad")
    for name in ("good", "bad"):  # as if the numbers had never been used here
        (path,) = (Path(os.environ["NEMORUN_HOME"]) / "ns_records" / name).glob("*.json")
        path.write_text(path.read_text().replace(f'"{user.ids(name)[name]}"', f'"9{user.ids(name)[name]}"'))
    user.submit(job("one", "true"), expname="one", run_after=("good",))
    with pytest.raises(UserError, match="'bad' has not succeeded, it is FAILED"):
        user.submit(job("two", "true"), expname="two", run_after=("bad",))
    (user.exp_dir("good") / "good/state").unlink()
    with pytest.raises(UserError, match="nobody knows any more how it ended"):
        user.submit(job("three", "true"), expname="three", run_after=("good",))


def test_an_experiment_of_another_cluster(user: SlurmUser) -> None:
    user.submit(job("one", "true"), expname="one")
    (path,) = (Path(os.environ["NEMORUN_HOME"]) / "ns_records/one").glob("*.json")
    path.write_text(path.read_text().replace('"nstest"', '"other"'))
    with pytest.raises(UserError, match="'one' was submitted to the cluster other, this one goes to nstest"):
        user.submit(job("two", "true"), expname="two", run_after=("one",))
