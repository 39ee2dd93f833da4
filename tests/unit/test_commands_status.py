"""What Slurm, and the files that jobs leave, say about jobs; which attempts at a job count."""

import dataclasses
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_skills.core.errors import UserError
from nemo_skills.pipeline import cli
from nemo_skills.pipeline.launch.experiments import attempts, choose, current, local_statuses
from nemo_skills.pipeline.launch.owner import Life, end_process, life_of, this_process
from nemo_skills.pipeline.launch.records import FAILED, RUNNING, SUCCEEDED, JobRecord, Record
from nemo_skills.pipeline.launch.slurm_state import Outcome, duration, read_answer, read_problem
from nemo_skills.pipeline.options import WhereOptions


@pytest.fixture(autouse=True)
def own_log_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands set logging up; their handler must not outlive the test."""
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", list(root.handlers))
    monkeypatch.setattr(root, "level", root.level)


# --- Slurm's answer


@pytest.mark.parametrize(
    ("answer", "state", "outcome", "elapsed", "exit_code", "reason"),
    [
        ("squeue|7|PENDING|0:00|Priority", "PENDING", "active", "0:00:00", None, "Priority"),
        ("squeue|7|RUNNING|1-02:03:04|None", "RUNNING", "active", "1-02:03:04", None, ""),
        ("squeue|7|COMPLETING|1:05|None", "COMPLETING", "active", "0:01:05", None, ""),
        ("sacct|7|COMPLETED|00:00:05|0:0", "COMPLETED", "succeeded", "0:00:05", 0, ""),
        ("sacct|7|CANCELLED by 1000|00:00:05|0:15", "CANCELLED", "failed", "0:00:05", 143, ""),
        ("sacct|7|OUT_OF_ME+|00:00:05|0:125", "OUT_OF_ME", "failed", "0:00:05", 253, ""),
        ("sacct|7|FAILED|00:00:05|3:0\nfile|7|failed|3 5", "FAILED", "failed", "0:00:05", 3, ""),
        (
            "sacct|7|FAILED|00:00:05|1:0\nfile|7|timeout|1 5",
            *("FAILED", "failed", "0:00:05", 1, "stopped before its time limit"),
        ),
        # the queue knows of a restart first, and of a cancelled job that ended with a clean exit
        (
            "squeue|7|PENDING|0:00|BeginTime\nfile|7|failed|1 5",
            "PENDING",
            "active",
            "0:00:00",
            None,
            "BeginTime",
        ),
        ("squeue|7|FAILED|0:09|NonZeroExitCode", "FAILED", "failed", "0:00:09", None, ""),
        ("squeue|7|FAILED|0:09|NonZeroExitCode\nfile|7|failed|4 8", "FAILED", "failed", "0:00:09", 4, ""),
        ("squeue|7|CANCELLED|0:09|None\nfile|7|succeeded|0 9", "CANCELLED", "failed", "0:00:09", 0, ""),
        ("file|7|succeeded|0 3661", "COMPLETED", "succeeded", "1:01:01", 0, ""),
        ("file|7|cancelled|- 12", "CANCELLED", "failed", "0:00:12", None, ""),
        ("file|7|cancelled|", "CANCELLED", "failed", "", None, ""),
        ("file|7|running|", "LOST", "failed", "", None, "it ended without a word"),
        ("file|7|queued|", "NOT_STARTED", "failed", "", None, "it left the queue without a start"),
        ("problem|timed out\nfile|7|running|", "UNKNOWN", "unknown", "", None, ""),
        ("problem|timed out\nfile|7|failed|1 5", "FAILED", "failed", "0:00:05", 1, ""),
        ("", "UNKNOWN", "unknown", "", None, ""),
        ("squeue|77|RUNNING|0:01|None", "UNKNOWN", "unknown", "", None, ""),
    ],
)
def test_an_answer_is_read(
    answer: str, state: str, outcome: str, elapsed: str, exit_code: int | None, reason: str
) -> None:
    found = read_answer(answer, ["7"])["7"]
    assert found.state == state
    assert found.outcome is Outcome(outcome)
    assert (found.elapsed, found.exit_code, found.reason) == (elapsed, exit_code, reason)


def test_a_silent_controller_is_noticed() -> None:
    assert read_problem("problem|slurm_load_jobs error: Unable to contact|x\nsacct|7|RUNNING|0:1|0:0") == (
        "slurm_load_jobs error: Unable to contact|x"
    )
    assert not read_problem("squeue|7|RUNNING|0:01|None")


@given(st.integers(0, 400 * 86400))
def test_durations_are_read_as_slurm_writes_them(seconds: int) -> None:
    text = duration(seconds)
    assert read_answer(f"sacct|7|COMPLETED|{text}|0:0", ["7"])["7"].elapsed == text
    days, _, clock = text.rpartition("-")
    hours, minutes, rest = map(int, clock.split(":"))
    assert int(days or 0) * 86400 + hours * 3600 + minutes * 60 + rest == seconds
    assert ("-" in text) == (seconds >= 86400)


# --- processes


def test_a_living_process_and_its_end() -> None:
    child = subprocess.Popen(["sleep", "60"])
    try:
        start = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[19]
        host = this_process().rsplit(":", 2)[0]
        mark = f"{host}:{child.pid}:{start}"
        assert life_of(mark) is Life.ALIVE
        assert life_of(f"{host}:{child.pid}:1") is Life.GONE, "the number belongs to another process now"
        assert life_of(f"elsewhere:{child.pid}:{start}") is Life.ELSEWHERE
        with pytest.raises(UserError, match="elsewhere"):
            end_process(f"elsewhere:{child.pid}:{start}")
        end_process(mark)
        assert child.wait(10) == -15
        assert life_of(mark) is Life.GONE
        end_process(mark)
    finally:
        child.kill()
    assert life_of(this_process()) is Life.ALIVE


# --- experiments of this machine


def record(
    name: str = "exp", state: str = RUNNING, jobs: tuple[str, ...] = ("a",), **changes: object
) -> Record:
    record.count += 1  # type: ignore[attr-defined]
    slurm_id = "5" if changes.get("executor") == "slurm" else None
    made = Record(
        expname=name,
        id=f"{name}_{10**18 + record.count}",  # type: ignore[attr-defined]
        cluster="none",
        executor="none",
        log_dir="/logs",
        state=state,
        jobs=tuple(JobRecord(name=job, log=f"/logs/{job}-main.log", slurm_id=slurm_id) for job in jobs),
        owner=this_process(),
    )
    made = dataclasses.replace(made, **changes)
    made = dataclasses.replace(made, exp_dir=str(made.folder))
    made.save()
    return made


record.count = 0  # type: ignore[attr-defined]


def leave(one: Record, job: str, state: str, ended: str = "") -> None:
    folder = Path(one.exp_dir or "") / job
    folder.mkdir(parents=True)
    (folder / "state").write_text(state + "\n")
    if ended:
        (folder / "ended").write_text(ended + "\n")


DEAD = f"{this_process().rsplit(':', 2)[0]}:{os.getpid()}:1"


@pytest.mark.parametrize(
    ("experiment", "left", "owner", "expected"),
    [
        (RUNNING, ("running", ""), this_process(), ("RUNNING", "active", None)),
        (RUNNING, ("running", ""), "elsewhere:1:1", ("RUNNING", "active", None)),
        (RUNNING, ("running", ""), DEAD, ("LOST", "failed", None)),
        (RUNNING, ("succeeded", "0 5"), this_process(), ("COMPLETED", "succeeded", 0)),
        (RUNNING, None, this_process(), ("PENDING", "active", None)),
        (RUNNING, None, DEAD, ("LOST", "failed", None)),
        (FAILED, ("failed", "7 5"), DEAD, ("FAILED", "failed", 7)),
        (FAILED, None, DEAD, ("NOT_STARTED", "failed", None)),
        (SUCCEEDED, ("succeeded", "0 5"), DEAD, ("COMPLETED", "succeeded", 0)),
    ],
    # parallel test processes must agree on names, and their pids differ
    ids=map(str, range(9)),
)
def test_states_of_this_machine(
    experiment: str,
    left: tuple[str, str] | None,
    owner: str,
    expected: tuple[str, str, int | None],
) -> None:
    one = record(state=experiment, owner=owner)
    if left:
        leave(one, "a", *left)
    (found,) = local_statuses([one])
    assert (found.state.state, found.state.outcome.value, found.state.exit_code) == expected


def test_the_newest_attempt_at_a_job_counts_and_any_that_still_runs() -> None:
    first = record(jobs=("a", "b", "c"), state=FAILED, owner=DEAD)
    for job, state in (("a", "succeeded"), ("b", "failed"), ("c", "failed")):
        leave(first, job, state, "1 1")
    second = record(jobs=("b",))
    leave(second, "b", "running")
    third = record(jobs=("b",), state=FAILED)
    leave(third, "b", "failed", "1 1")
    found = current(local_statuses(attempts(["exp"])))
    assert [(one.record, one.job.name) for one in found] == [
        (first, "a"),
        (first, "c"),
        (second, "b"),
        (third, "b"),
    ]


def test_experiments_are_chosen_by_name_or_by_cluster(tmp_path: Path) -> None:
    record("one")
    record("two", cluster="other")
    record("one")
    nowhere = WhereOptions()
    assert choose((), nowhere) == ["two", "one"]
    assert choose(("two", "two"), nowhere) == ["two"]
    config = tmp_path / "other.yaml"
    config.write_text("executor: none\n")
    assert choose((), WhereOptions(cluster=str(config))) == ["two"]
    with pytest.raises(UserError, match="Did you mean 'two'"):
        attempts(["tow"])


def test_json_and_table(capsys: pytest.CaptureFixture[str]) -> None:
    one = record(state=FAILED, jobs=("a", "b"))
    leave(one, "a", "failed", "3 61")
    assert cli.main(["status", "exp", "--format=json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert first == {
        "experiment": "exp",
        "id": one.id,
        "cluster": "none",
        "job": "a",
        "slurm_id": None,
        "state": "FAILED",
        "outcome": "failed",
        "reason": "",
        "elapsed": "0:01:01",
        "exit_code": 3,
        "log": "/logs/a-main.log",
    }
    assert second["state"] == "NOT_STARTED"
    assert cli.main(["status"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["exp", "a", "FAILED", "0:01:01", "3", "/logs/a-main.log"] in lines


def test_only_the_latest_experiments_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(25):
        record(f"exp{number:02}", state=SUCCEEDED)
    assert len(cli.status()) == 20
    assert cli.status()[-1].record.expname == "exp24"
    assert len(cli.status(all=True)) == 25


def test_a_missing_config_leaves_other_experiments_visible(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    record("far", executor="slurm", config=str(tmp_path / "gone.yaml"))
    record("near", state=SUCCEEDED)
    found = {one.record.expname: one.state.state for one in cli.status()}
    assert found == {"far": "UNKNOWN", "near": "NOT_STARTED"}
    assert "gone.yaml, is gone" in caplog.text


def test_cancel_wants_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    leave(record("runs"), "a", "running")
    record("ended", state=SUCCEEDED)
    assert cli.main(["cancel"]) == 2
    assert "Unfinished: runs" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["status", "logs", "cancel"])
def test_unknown_experiments(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    record("train")
    assert cli.main([command, "trian"]) == 2
    assert "Did you mean 'train'?" in capsys.readouterr().err


def test_status_of_slurm_imports_nothing_heavy() -> None:
    heavy = {"nemo_run", "torch", "hydra"}
    code = f"import sys, nemo_skills.pipeline.status; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
