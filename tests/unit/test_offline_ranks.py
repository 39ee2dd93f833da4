"""Who is who among several processes, which GPUs they get, and who may write an output."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from nemo_skills.core.errors import UserError
from nemo_skills.core.jsonl import Journal
from nemo_skills.inference.offline.ranks import Ranks, engine_env
from nemo_skills.inference.offline.session import Identity, Session
from nemo_skills.inference.outputs import OutputPaths

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "h", "MASTER_PORT": "29500"}
SRUN = {
    "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1",
}  # fmt: skip


def test_alone() -> None:
    assert Ranks.from_env({}) is None


def test_torchrun_comes_before_slurm() -> None:
    ranks = Ranks.from_env(SRUN | TORCHRUN)
    assert ranks is not None
    assert (ranks.rank, ranks.size, ranks.local_rank) == (5, 8, 1)


def test_slurm_step() -> None:
    ranks = Ranks.from_env(SRUN)
    assert ranks is not None
    assert (ranks.rank, ranks.size, ranks.local_rank) == (3, 4, 1)


def test_slurm_variables_alone_are_enough() -> None:
    ranks = Ranks.from_env({"SLURM_PROCID": "1", "SLURM_NTASKS": "2"})
    assert ranks is not None
    assert (ranks.rank, ranks.size) == (1, 2)


def test_the_number_of_a_steps_tasks_counts_not_the_jobs() -> None:
    ranks = Ranks.from_env(SRUN | {"SLURM_NTASKS": "9", "SLURM_STEP_NUM_TASKS": "4"})
    assert ranks is not None
    assert ranks.size == 4


def test_a_batch_script_is_no_task() -> None:
    assert Ranks.from_env({"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "8"}) is None


@pytest.mark.parametrize("wrong", [{"RANK": "x"}, {"RANK": "8"}, {"WORLD_SIZE": "0"}])
def test_nonsense_is_named(wrong: dict[str, str]) -> None:
    with pytest.raises(UserError, match="launcher's variables"):
        Ranks.from_env(TORCHRUN | wrong)


def test_ranks_of_one_job_know_each_other() -> None:
    other = Ranks.from_env(TORCHRUN | {"RANK": "6", "LOCAL_RANK": "2"})
    later = Ranks.from_env(TORCHRUN | {"MASTER_PORT": "29501"})
    mine = Ranks.from_env(TORCHRUN)
    assert mine and other and later
    assert mine.job == other.job != later.job


def test_tensor_parallel_groups() -> None:
    found = [Ranks(rank=rank, size=8, local_rank=rank % 4).grouped(2) for rank in range(8)]
    assert [ranks and (ranks.rank, ranks.size, ranks.local_rank) for ranks in found] == [
        (0, 4, 0), None, (1, 4, 2), None, (2, 4, 0), None, (3, 4, 2), None,
    ]  # fmt: skip
    with pytest.raises(UserError, match="cannot be split"):
        Ranks(rank=0, size=3).grouped(2)


@pytest.mark.parametrize(
    ("visible", "first", "count", "expected"),
    [
        (None, 2, 1, "2"),
        (None, 2, 2, "2,3"),
        ("4,5,6,7", 1, 1, "5"),
        ("4,5,6,7", 2, 2, "6,7"),
        ("3", 5, 1, "3"),
        ("", 5, 1, ""),
        ("GPU-a,GPU-b", 1, 1, "GPU-b"),
    ],
)
def test_gpus_of_a_process(visible: str | None, first: int, count: int, expected: str) -> None:
    env = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert engine_env(env, first, count, 1)["CUDA_VISIBLE_DEVICES"] == expected


def test_too_few_gpus() -> None:
    with pytest.raises(UserError, match="Process 2 of this machine needs GPUs 2 to 2, but sees only 2"):
        engine_env({"CUDA_VISIBLE_DEVICES": "0,1"}, 2, 1, 1)


def test_engines_do_not_see_the_launcher() -> None:
    env = engine_env(TORCHRUN | SRUN | {"HOME": "/h", "PMI_RANK": "1"}, None, 1, 3)
    assert env == {"HOME": "/h", "OMP_NUM_THREADS": "3"}


# Locks belong to open files, so two sessions of this process are as good as two processes


@pytest.fixture
def paths(weird_tmp_path: Path) -> OutputPaths:
    return OutputPaths.of(weird_tmp_path / "sub" / "out.jsonl")


def identity(rank: int = 0, size: int = 2, job: str = "a", **changes: object) -> Identity:
    base = Identity(
        ranks=Ranks(rank=rank, size=size, job=job),
        settings={"temperature": 1.0, "model": "m"},
        source={"rows": 3, "check": 1},
        resume=True,
    )
    return replace(base, **changes)


def join(paths: OutputPaths, who: Identity) -> Session:
    session = Session.join(paths, who)
    assert session is not None
    return session


def finished_row(session: Session) -> None:
    journal = Journal.open(session.files.journal(0))
    journal.append(0, b"{}", b'{"a":1}')
    journal.close()


def test_ranks_of_one_job_join_and_another_job_is_refused(paths: OutputPaths) -> None:
    with join(paths, identity(0)), join(paths, identity(1)):
        with pytest.raises(UserError, match="Another job is writing this output"):
            Session.join(paths, identity(0, job="b"))
        with pytest.raises(UserError, match="Another job is writing this output"):
            Session.join(paths, identity(2, size=3))
    join(paths, identity(0, job="b")).close()


def test_the_generation_main_and_offline_jobs_exclude_each_other(
    paths: OutputPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nemo_skills.inference.offline.session._LOCK_PATIENCE_S", 0.2)
    with join(paths, identity()), pytest.raises(UserError, match="Another process is writing this output"):
        Journal.open(paths.journal)
    journal = Journal.open(paths.journal)
    with pytest.raises(UserError, match="Another job is writing this output"):
        Session.join(paths, identity())
    journal.append(0, b"{}", b"{}")
    journal.close()
    with pytest.raises(UserError, match="unfinished run with a server"):
        Session.join(paths, identity())


def test_other_settings_do_not_mix(paths: OutputPaths) -> None:
    with join(paths, identity()) as session:
        finished_row(session)
    changed = {"temperature": 0.5, "model": "m"}
    with pytest.raises(UserError, match=r"temperature was 1\.0, is 0\.5\. Give the same again"):
        Session.join(paths, identity(job="b", settings=changed))
    with join(paths, identity(job="b", settings=changed, resume=False)) as session:
        finished_row(session)
    with pytest.raises(UserError, match=r"temperature was 0\.5, is 1\.0"):
        Session.join(paths, identity(job="c"))


def test_a_job_that_failed_early_leaves_nothing_and_binds_nobody(paths: OutputPaths) -> None:
    with pytest.raises(UserError), join(paths, identity(0)), join(paths, identity(1)):
        raise UserError("out of memory")
    assert list(paths.output.parent.iterdir()) == []
    join(paths, identity(settings={})).close()


def test_ranks_of_one_job_must_agree(paths: OutputPaths) -> None:
    with join(paths, identity(0)), pytest.raises(UserError, match="other settings"):
        Session.join(paths, identity(1, settings={"model": "other"}))


def test_the_last_rank_merges(paths: OutputPaths) -> None:
    with join(paths, identity(0)) as first, join(paths, identity(1)) as second:
        assert first.finish(0, 2) is None
        lock = second.finish(1, 2)
        assert lock is not None
        with lock:
            assert first.finish(0, 2) is None, "somebody is at it"


def test_a_late_rank_does_not_throw_away_the_others_work(paths: OutputPaths) -> None:
    again = {"resume": False}
    first = join(paths, identity(0, **again))
    finished_row(first)
    assert first.finish(0, 2) is None
    first.close()
    with join(paths, identity(1, **again)) as late:
        assert late.files.journal(0).exists()
        lock = late.finish(1, 2)
        assert lock is not None
        lock.__exit__(None, None, None)
    # the same command once more starts over, although its processes look the same
    with join(paths, identity(0, **again)) as rerun:
        assert not rerun.files.journal(0).exists()
        assert rerun.finish(0, 2) is None, "the mark of rank 1 was the former run's"


def test_a_rerun_keeps_journals_but_no_marks(paths: OutputPaths) -> None:
    for rank in (0, 1):
        with join(paths, identity(rank)) as session:
            finished_row(session)
            session.files.finished(rank).touch()
    with join(paths, identity(0)) as rerun:
        assert rerun.files.has_rows()
        assert rerun.finish(0, 2) is None


def test_a_complete_output(paths: OutputPaths) -> None:
    join(paths, identity()).close()
    paths.output.write_bytes(b"{}\n")
    mark = {"settings": dict(identity().settings), "input": {"rows": 3, "check": 1}}
    paths.done.write_text(json.dumps(mark))
    with pytest.raises(UserError, match="other settings"):
        Session.join(paths, identity(settings={"temperature": 0.0, "model": "m"}))
    with pytest.raises(UserError, match="The input has changed"):
        Session.join(paths, identity(source={"rows": 4, "check": 1}))
    assert Session.join(paths, identity(job="later")) is None
    assert sorted(path.name for path in paths.output.parent.iterdir()) == ["out.jsonl", "out.jsonl.done"]
    with join(paths, identity(resume=False)):
        assert not paths.done.exists()
