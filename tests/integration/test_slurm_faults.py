"""What goes wrong on a Slurm cluster, done on purpose: no row is lost or done twice, nothing stays queued."""

import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from nemo_skills.core.errors import UserError
from nemo_skills.pipeline.launch.plan import Job
from tests.integration.generation import read_rows, write_rows
from tests.integration.slurm_jobs import SSH, SlurmUser, bash, job
from tests.services.process import wait_until
from tests.services.sshd import SshServer

pytestmark = pytest.mark.service("slurm")


@pytest.fixture
def user(slurm_user: SlurmUser) -> SlurmUser:
    return slurm_user


# Jobs that are interrupted


def slow_generation(user: SlurmUser, rows: int, **options: object) -> int:
    """Start a job that answers five rows in a second, and wait until it has begun; returns its id."""
    write_rows(user.workspace / "in.jsonl", rows)
    assert user.generate("++max_concurrent_requests=1", server_args="--latency=0.2", **options) == 0
    wait_until("rows in the journal", lambda: rows_in_the_journal(user) >= 2)
    return user.ids()["generate"]


def journal(user: SlurmUser) -> Path:
    return user.workspace / "out put/generation/output.jsonl-async"


def rows_in_the_journal(user: SlurmUser) -> int:
    return journal(user).read_bytes().count(b'"id"') if journal(user).exists() else 0


def all_rows_are_there(user: SlurmUser, rows: int, last_job: str = "generate") -> None:
    output = user.workspace / "out put/generation/output.jsonl"
    assert [row["id"] for row in read_rows(output)] == list(range(rows))
    assert all(row["generation"] for row in read_rows(output))
    main = (user.workspace / f"out put/generation-logs/{last_job}-main.log").read_text()
    assert "Going on from" in main
    assert {path.name for path in output.parent.iterdir()} == {"output.jsonl", "output.jsonl.done"}


def test_requeue(user: SlurmUser) -> None:
    job_id = slow_generation(user, 12)
    user.cluster.scontrol("requeue", str(job_id))
    user.cluster.release(job_id)
    assert user.wait() == {"generate": "COMPLETED"}
    all_rows_are_there(user, 12)


def test_a_node_dies_and_another_takes_over(user: SlurmUser) -> None:
    job_id = slow_generation(user, 12)
    node = user.cluster.job(job_id)["NodeList"]
    user.cluster.kill_slurmd(node)
    user.cluster.mark_down(node)
    try:
        user.cluster.release(job_id)
        assert user.wait() == {"generate": "COMPLETED"}
        assert user.cluster.job(job_id)["Restarts"] != "0"
    finally:
        user.cluster.start_slurmd(node)
    all_rows_are_there(user, 12)


def test_preempted(user: SlurmUser) -> None:
    job_id = slow_generation(user, 12)
    user.cluster.command("srun", "--immediate=120", "--partition=urgent", "--nodes=2", "--exclusive", "true")
    user.cluster.release(job_id)
    assert user.wait() == {"generate": "COMPLETED"}
    all_rows_are_there(user, 12)


def test_walltime(user: SlurmUser, capsys: pytest.CaptureFixture[str]) -> None:
    config = user.config(default_timeout="00:01:00")
    options = {"config": config, "partition": "short", "dependent_jobs": 2}
    rows = 180  # more than Slurm needs to notice that time is up, which it looks at every 30 seconds
    job_id = slow_generation(user, rows, **options)
    user.cluster.expire(job_id)
    assert user.generate(**options) == 0
    assert "queued by an earlier call, not submitted again: generate-part3" in capsys.readouterr().err
    states = user.wait(timeout_s=150)
    assert (states["generate"], states["generate-part3"]) == ("TIMEOUT", "COMPLETED")
    first, second, third = (
        (user.exp_dir("generate") / name / "state").read_text().strip() for name in sorted(states)
    )
    assert (first, third) == ("timeout", "succeeded")
    # Slurm may warn the second part so early that the third has something to do, too
    assert second in ("timeout", "succeeded")
    all_rows_are_there(user, rows, "generate-part2")


# Submissions that break off


def three_jobs() -> tuple[Job, ...]:
    return (job("a", "sleep 30"), job("b", "sleep 30"), job("c", "true", after=("a", "b")))


def nothing_is_left(user: SlurmUser, expname: str = "exp") -> None:
    # on a busy machine Slurm takes a moment to forget what was cancelled
    wait_until("no job is left", lambda: user.queued() == [])
    assert not list((user.job_dir / expname).glob("*/*"))
    assert not list(user.job_dir.rglob("secrets.env"))


def test_a_refused_job_takes_the_others_back(user: SlurmUser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "canary-of-this-test")
    user.job_dir.mkdir()
    first, second, _ = three_jobs()
    config = {"cpu_partition": "cpu", "partition": "no-such"}
    on_gpus = job("b", bash("true", gpus=1), after=("a",))
    with pytest.raises(UserError, match=r"nothing stays queued: .*invalid partition.*in job b"):
        user.submit(first, on_gpus, cluster=config)
    nothing_is_left(user)
    with pytest.raises(UserError, match=r"(?s)Invalid qos.*in job a"):
        user.submit(first, second, qos="none-such")
    nothing_is_left(user)
    with pytest.raises(UserError, match="time limit"):
        user.submit(first, second, partition="short", cluster={"default_timeout": "02:00:00"})
    nothing_is_left(user)


def test_no_controller(user: SlurmUser, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(user.workspace / "in.jsonl", 2)
    user.cluster.stop_slurmctld()
    try:
        assert user.generate() == 2
    finally:
        user.cluster.start_slurmctld()
    said = capsys.readouterr().err
    assert "Slurm's controller does not answer on this machine" in said
    assert "Traceback" not in said
    assert user.queued() == []


@pytest.fixture
def small_disk(user: SlurmUser) -> Iterator[Path]:
    """A job folder on a disk with room for the code only."""
    user.job_dir.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(user.job_dir)], check=True)
    yield user.job_dir
    subprocess.run(["umount", "--lazy", str(user.job_dir)], check=True)


def test_a_full_job_dir(user: SlurmUser, small_disk: Path) -> None:
    user.submit(job("exp", "true"))
    assert user.wait("exp") == {"exp": "COMPLETED"}
    filler = small_disk / "filler"
    with filler.open("wb") as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(b"x" * 65536)
            file.flush()
    with pytest.raises(UserError, match=r"(?s)nothing stays queued: .*No space left on device"):
        user.submit(*three_jobs(), expname="more")
    nothing_is_left(user, "more")
    filler.unlink()
    user.submit(job("more", "true"), expname="more")
    assert user.wait("more") == {"more": "COMPLETED"}


@pytest.fixture
def login(user: SlurmUser, ssh_server: SshServer, monkeypatch: pytest.MonkeyPatch) -> SshServer:
    monkeypatch.setenv("PATH", ssh_server.env["PATH"])
    monkeypatch.delenv("SLURM_CONF")
    user.use(SSH, server=ssh_server)
    return ssh_server


def drop(user: SlurmUser, login: SshServer, when: int) -> threading.Thread:
    """Cut the connection as soon as so many jobs are queued."""

    def act() -> None:
        wait_until("jobs", lambda: len(user.queued()) >= when)
        login.drop_connections()

    thread = threading.Thread(target=act)
    thread.start()
    return thread


@pytest.mark.service("ssh")
def test_a_connection_that_drops_leaves_nothing(
    user: SlurmUser, login: SshServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "canary-of-this-test")
    jobs = [job(f"j{i}", "sleep 60") for i in range(60)]
    thread = drop(user, login, 5)
    with pytest.raises(UserError, match=r"(?s)connection to .*Nothing stays queued: run the command again"):
        user.submit(*jobs)
    thread.join()
    nothing_is_left(user)
    user.submit(*jobs[:2])
    assert len(user.queued()) == 2


@pytest.mark.service("ssh")
def test_ctrl_c_while_submitting_leaves_nothing(user: SlurmUser, login: SshServer) -> None:
    write_rows(user.workspace / "in.jsonl", 40)
    argv = [*user.command(num_chunks=40)]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, env=os.environ) as process:
        wait_until("jobs", lambda: len(user.queued()) >= 3)
        process.send_signal(2)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in said
    nothing_is_left(user, "generate")


def test_what_a_killed_submission_left_is_replaced(user: SlurmUser) -> None:
    """Its jobs are on hold for ever; the next call of the same kind cancels them."""
    write_rows(user.workspace / "in.jsonl", 40)
    process = psutil.Popen(user.command(num_chunks=40), env=os.environ)
    wait_until("jobs", lambda: len(user.queued()) >= 3)
    family = [process, *process.children(recursive=True)]
    for one in family:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    psutil.wait_procs(family)
    left = user.queued()
    assert {user.cluster.job(int(i))["Reason"] for i in left} == {"JobHeldUser"}
    assert user.generate(num_chunks=40, config=user.config(sbatch_options={"hold": ""})) == 0
    assert len(user.queued()) == 41
    assert not set(left) & set(user.queued())
