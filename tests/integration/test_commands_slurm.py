"""`ns status`, `logs`, `cancel` and `start_server` on a real Slurm cluster, with accounting and without."""

import contextlib
import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from nemo_skills.core.errors import JobFailedError
from nemo_skills.pipeline import cli, logs
from nemo_skills.pipeline.launch.experiments import JobStatus
from nemo_skills.pipeline.launch.records import history
from tests.integration import places
from tests.integration.places import Place
from tests.services.process import wait_until
from tests.services.slurm import SlurmCluster

CANARY = "canary-7d1c0f3a"
Make = Callable[[str], Place]


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """The place named by the test's parameter."""
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    with places.place(request.param, request, tmp_path, monkeypatch) as found:
        yield found


both = pytest.mark.parametrize("place", ["slurm-bare", "slurm-noacct"], indirect=True)
everywhere = pytest.mark.parametrize("place", ["slurm-bare", "slurm-noacct", "slurm-ssh"], indirect=True)
over_ssh = pytest.mark.parametrize("place", ["slurm-ssh"], indirect=True)


def status(expname: str = "run_cmd") -> list[JobStatus]:
    return cli.status(expnames=expname, format="json")


def state(expname: str = "run_cmd") -> str:
    (one,) = status(expname)
    return one.state.state


def next_second() -> None:
    """Wait until what is there is older than the whole second that ages are counted from."""
    time.sleep(1.1)


def logged(place: Place, capfdbinary: pytest.CaptureFixture[bytes], *words: str) -> str:
    capfdbinary.readouterr()
    assert place.ns("logs", *words) == 0
    return capfdbinary.readouterr().out.decode()


def without_slurm(text: str) -> str:
    """Leave out what Slurm itself adds to the output of a job that it ends."""
    lines = text.splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith(("srun: ", "slurmstepd")))


def secrets(place: Place) -> list[Path]:
    """Files that hold the canary, and any that is there to hold secrets."""
    found = []
    for path in (place.folder / "jobs").rglob("*"):
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):  # jobs replace files meanwhile
            text = path.read_text(errors="replace")
            if path.suffix == ".env" or CANARY in text:
                found.append(path)
    return found


@everywhere
def test_a_job_from_the_queue_to_its_end(place: Place, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    (go := place.folder / "go").unlink(missing_ok=True)
    held = f"until [[ -e '{go}' ]]; do sleep 0.1; done; echo the end; exit 3"
    assert place.ns("run_cmd", *place.cluster, "--expname=first", held) == 0
    assert place.ns("run_cmd", *place.cluster, "--expname=second", "--run_after=first", "true") == 0
    wait_until("it runs", lambda: state("first") == "RUNNING")
    wait_until("Slurm says why", lambda: status("second")[0].state.reason == "Dependency")
    assert state("second") == "PENDING"
    assert "no log yet (PENDING, Dependency)" in log_errors(place, capfdbinary, "second")
    go.touch()
    place.wait("first")
    (first,) = status("first")
    assert (first.state.state, first.state.exit_code) == ("FAILED", 3)
    assert re.fullmatch(r"0:00:\d\d", first.state.elapsed)
    assert without_slurm(logged(place, capfdbinary, "first")) == "the end\n"
    assert "exit code 3" in logged(place, capfdbinary, "first", "--component=sbatch")
    # a failed predecessor never lets a dependent run
    place.wait("second")
    (second,) = status("second")
    assert second.state.outcome.value == "failed"
    assert not Path(second.job.log).exists()


def log_errors(place: Place, capfdbinary: pytest.CaptureFixture[bytes], *words: str) -> str:
    capfdbinary.readouterr()
    assert place.ns("logs", *words) == 0
    out, err = capfdbinary.readouterr()
    assert out == b""
    return err.decode()


@both
def test_success(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    assert place.run_cmd("--num_nodes=2", "--num_tasks=2", "echo $SLURM_PROCID") == 0
    (one,) = status()
    assert (one.state.state, one.state.exit_code) == ("COMPLETED", 0)
    assert sorted(Path(one.job.log).read_text().split()) == ["0", "1", "2", "3"]
    capfd.readouterr()
    assert place.ns("status") == 0
    (row,) = [line.split() for line in capfd.readouterr().out.splitlines() if "COMPLETED" in line]
    assert row == ["run_cmd", "run_cmd", one.job.slurm_id, "COMPLETED", one.state.elapsed, "0", one.job.log]


@both
def test_what_slurm_has_forgotten_is_read_from_files(
    place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert place.run_cmd("exit 4") == 0
    # minutes later neither command knows the job; without accounting only one ever did
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, line in {"squeue": "true", "sacct": "echo accounting is off >&2; exit 1"}.items():
        (programs / name).write_text(f"#!/bin/sh\n{line}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    (one,) = status()
    assert (one.state.state, one.state.exit_code) == ("FAILED", 4)
    assert re.fullmatch(r"0:00:\d\d", one.state.elapsed)


@everywhere
def test_a_log_is_followed_until_the_job_has_ended(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    go = place.folder / "go"
    line = f"echo one; until [[ -e '{go}' ]]; do sleep 0.1; done; printf 'two\\nend'"
    assert place.ns("run_cmd", *place.cluster, line) == 0
    wait_until("it runs", lambda: state() == "RUNNING")
    following = place.start("logs", "run_cmd", "--follow")
    assert following.stdout is not None
    assert following.stdout.readline() == "one\n"
    go.touch()
    assert following.stdout.read() == "two\nend\n"
    assert following.wait(3 * logs.ASK_EVERY_S) == 0
    following.communicate()


@everywhere
def test_cancel_ends_running_and_waiting_jobs_and_removes_secrets(
    place: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    saves = "trap 'echo saved; exit 0' TERM; sleep 600 & wait"
    assert place.ns("run_cmd", *place.cluster, "--expname=runs", "--dependent_jobs=1", saves) == 0
    assert place.ns("run_cmd", *place.cluster, "--expname=waits", "--run_after=runs", "true") == 0
    wait_until("it runs", lambda: status("runs")[0].state.state == "RUNNING")
    kept = secrets(place)
    assert len(kept) == 3
    assert {stat.S_IMODE(path.stat().st_mode) for path in kept} == {0o600}
    assert place.ns("cancel", "waits", "runs") == 0
    assert "waits: job waits" in capfd.readouterr().err
    assert {one.state.state for one in [*status("runs"), *status("waits")]} <= {"CANCELLED", "FAILED"}
    assert not any(one.active for one in [*status("runs"), *status("waits")])
    assert without_slurm(Path(status("runs")[0].job.log).read_text()) == "saved\n"
    assert secrets(place) == []
    assert place.ns("cancel", "runs") == 0
    assert "nothing to cancel" in capfd.readouterr().err


@both
def test_cancelled_before_the_start_is_known_as_such_for_good(
    place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert place.ns("run_cmd", *place.cluster, "--expname=blocks", "sleep 600") == 0
    assert place.ns("run_cmd", *place.cluster, "--run_after=blocks", "true") == 0
    cli.cancel(expnames=["run_cmd"])
    assert state() == "CANCELLED"
    cli.cancel(expnames="blocks")
    folder = Path(history("run_cmd")[-1].exp_dir or "") / "run_cmd"
    assert (folder / "state").read_text() == "cancelled\n"


@both
def test_attempts_of_one_name_are_cancelled_together(place: Place) -> None:
    for _ in range(2):
        assert place.ns("run_cmd", *place.cluster, "sleep 600") == 0
    assert len(status()) == 2
    assert len(cli.cancel(expnames="run_cmd")) == 2
    assert not any(one.active for one in status())


def test_a_controller_that_is_down_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    with (
        SlurmCluster(request.getfixturevalue("service_root") / "down", accounting=False) as cluster,
        places.place("slurm-given", request, tmp_path, monkeypatch, cluster=cluster) as place,
    ):
        assert place.ns("run_cmd", *place.cluster, "sleep 600") == 0
        cluster.stop_slurmctld()
        assert state() == "UNKNOWN"
        assert place.ns("cancel", "run_cmd") == 1
        cluster.start_slurmctld()
        wait_until("it is known again", lambda: state() in ("RUNNING", "PENDING"))
        cli.cancel(expnames="run_cmd")


@both
def test_clean_removes_what_has_ended(place: Place) -> None:
    assert place.run_cmd("true") == 0
    assert place.ns("run_cmd", *place.cluster, "--expname=runs", "sleep 600") == 0
    wait_until("it runs", lambda: state("runs") == "RUNNING")
    (ended,), (runs,) = history("run_cmd"), history("runs")
    jobs = place.folder / "jobs"
    next_second()
    kinds = {one.path: one.kind for one in cli.clean(cluster=place.config, older_than="0m", yes=True)}
    assert kinds[ended.exp_dir or ""] == "experiment"
    assert kinds[runs.exp_dir or ""] == "busy"
    assert not (jobs / "run_cmd").exists()
    assert not (jobs / "logs" / "run_cmd").exists()
    assert Path(runs.code_dir or "").is_dir(), "the job that runs needs it"
    assert place.ns("status", "run_cmd") == 2
    cli.cancel(expnames="runs")
    next_second()

    def busy() -> bool:
        return any(one.kind == "busy" for one in cli.clean(cluster=place.config, older_than="0m"))

    wait_until("it has left the queue", lambda: not busy())
    cli.clean(cluster=place.config, older_than="0m", yes=True)
    left = [path.relative_to(jobs) for path in jobs.rglob("*") if path.is_file()]
    assert [path for path in left if path.parent != Path("logs/runs")] == []


# --- start_server


def start(place: Place, *words: str) -> subprocess.Popen[str]:
    return place.start("start_server", *place.cluster, "--server_type=stub", "--model=m", *words)


def address_of(running: subprocess.Popen[str]) -> str:
    assert running.stdout is not None
    for line in running.stdout:
        if found := re.match(r"the server is ready: (\S+) \(model m\)", line):
            return found[1]
    raise AssertionError(running.communicate())


def stub_config(place: Place) -> None:
    """The stub needs our environment, which a bare cluster's own Python does not have."""
    path = Path(place.config)
    path.write_text(f"{path.read_text()}containers:\n  nemo-skills: venv:{sys.prefix}\n")


@pytest.mark.parametrize("place", ["slurm-noacct", "slurm-ssh"], indirect=True)
def test_a_server_is_up_until_ctrl_c(place: Place) -> None:
    stub_config(place)
    running = start(place, "--create_tunnel")
    address = address_of(running)
    with urllib.request.urlopen(f"{address}/models") as answer:
        assert json.load(answer)["data"][0]["id"] == "m"
    assert state("start_server") == "RUNNING"
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=40)
    assert running.returncode == 130
    assert state("start_server") == "CANCELLED"
    if place.name == "slurm-ssh":
        assert address.startswith("http://127.0.0.1:")
        assert "on the cluster it is http://" in err
    else:
        assert "no tunnel is needed" in err
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"{address}/models")


@over_ssh
def test_the_tunnel_survives_a_lost_connection(place: Place, request: pytest.FixtureRequest) -> None:
    stub_config(place)
    running = start(place, "--create_tunnel", "--tunnel_port=28917")
    assert address_of(running) == "http://127.0.0.1:28917/v1"
    request.getfixturevalue("ssh_server").drop_connections()
    assert address_of(running) == "http://127.0.0.1:28917/v1"
    with urllib.request.urlopen("http://127.0.0.1:28917/v1/models") as answer:
        assert answer.status == 200
    running.send_signal(signal.SIGTERM)
    running.communicate(timeout=40)
    assert running.returncode == 143
    assert not any(one.active for one in status("start_server"))


@both
def test_a_server_that_cannot_start(place: Place) -> None:
    stub_config(place)
    with pytest.raises(JobFailedError, match="the server ended"):
        cli.start_server(
            cluster=place.config,
            server_type="stub",
            model="m",
            server_args="--no-such-flag",
        )


# --- setup


def setup(place: Place, **options: str) -> int:
    values = {
        "executor": "slurm",
        "name": "new",
        "config_dir": str(place.folder / "configs"),
        "job_dir": str(place.folder / "new jobs"),
        "container_runtime": "none",
        "slurm_partition": "batch",
        **options,
    }
    return place.ns("setup", *(f"--{name}={value}" for name, value in values.items()))


@everywhere
def test_setup_writes_a_config_that_works(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    given = yaml.safe_load(Path(place.config).read_text()).get("ssh_tunnel", {})
    ssh = {f"ssh_{name}": value for name, value in given.items() if name != "job_dir"}
    job_dir = {"job_dir": str(place.folder / "new-jobs")}
    assert setup(place, **ssh, **job_dir) == 0
    lines = capfd.readouterr().out.splitlines()
    assert not [line for line in lines if line.startswith("FAILED")]
    where = ["ssh to root@ns-test-login"] if ssh else []
    checked = [line[8:].split(":")[0] for line in lines if line.startswith("ok ")]
    assert checked == [
        *where,
        f"job_dir {place.folder}/new-jobs",
        "partition batch",
        "a job in partition batch would be accepted",
        "accounting",
        "container_runtime none",
    ]
    (accounting,) = [line for line in lines if "accounting" in line]
    assert ("off" in accounting) == (place.name == "slurm-noacct")
    config = f"--cluster={place.folder}/configs/new.yaml"
    assert place.ns("run_cmd", config, "true") == 0
    place.wait()
    assert state() == "COMPLETED"
    assert place.ns("setup", "--verify", config) == 0


@pytest.mark.parametrize("place", ["slurm-bare"], indirect=True)
def test_setup_names_what_is_wrong(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    options = {"slurm_partition": "bach", "slurm_cpu_partition": "cpu", "account": "nobody"}
    assert (
        setup(place, **options, job_dir="/proc/jobs", mounts="/no/such:/workspace", containers="vllm=image")
        == 1
    )
    failed = {
        line[8:].partition(": ")[0]: line.partition(": ")[2]
        for line in capfd.readouterr().out.splitlines()
        if line.startswith("FAILED")
    }
    assert "Did you mean 'batch'?" in failed["partition bach"]
    assert "Invalid account" in failed["a job in partition cpu would be accepted"]
    assert "account 'nobody'" in failed["a job in partition cpu would be accepted"]
    assert "cannot be written" in failed["job_dir /proc/jobs"]
    assert set(failed) == {
        *("partition bach", "a job in partition cpu would be accepted", "job_dir /proc/jobs"),
    }


@pytest.mark.parametrize("place", ["slurm-container"], indirect=True)
def test_setup_finds_the_container_plugin(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    options = {"container_runtime": "pyxis", "containers": "nemo-skills=ns-test-base:latest"}
    options |= {"mounts": f"{place.folder}:/workspace,/no/such:/data"}
    assert setup(place, **options, job_dir=str(place.folder / "new")) == 1
    lines = capfd.readouterr().out.splitlines()
    assert "ok      container_runtime pyxis" in lines
    assert [line for line in lines if line.startswith("FAILED")] == [
        "FAILED  mount /no/such:/data: /no/such does not exist: create it, or take it out"
    ]


@over_ssh
def test_setup_without_a_connection(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    assert setup(place, ssh_host="ns-test-login", ssh_user="nobody", job_dir="/tmp/jobs") == 1
    out = capfd.readouterr().out.splitlines()
    (failed,) = [line for line in out if line.startswith("FAILED")]
    assert failed.startswith("FAILED  ssh to nobody@ns-test-login: ")
    assert "permission denied" in failed
