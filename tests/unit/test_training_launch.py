"""The processes of a training run on one node, and chains of jobs on this machine."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nemo_skills.core.errors import JobFailedError
from nemo_skills.pipeline.cluster.config import ClusterConfig
from nemo_skills.pipeline.launch.experiments import local_statuses
from nemo_skills.pipeline.launch.plan import Component, Job, Plan, chain
from nemo_skills.pipeline.launch.records import latest
from nemo_skills.pipeline.launch.submit import launch
from tests.services.process import wait_until

# Each process says who it is and then behaves as its rank is told to
PROGRAM = """
import os, signal, sys, time
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
os.write(1, " ".join(["up", *(os.environ[name] for name in names)]).encode() + b"\\n")  # in one piece
what = sys.argv[1 + int(os.environ["RANK"])]
while what == "wait" and not asked:
    time.sleep(0.02)
if what == "die":
    os.kill(os.getpid(), signal.SIGKILL)
if what == "hang":
    time.sleep(600)
sys.exit(3 if what == "wait" else int(what))
"""


def start(*ranks: str, **env: str) -> subprocess.Popen[str]:
    argv = [sys.executable, "-m", "nemo_skills.training.launch", f"--processes={len(ranks)}", "--farewell=1"]
    argv += ["--", "-c", PROGRAM, *ranks]
    return subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | env
    )


@contextmanager
def started(*ranks: str, **env: str) -> Iterator[subprocess.Popen[str]]:
    running = start(*ranks, **env)
    try:
        yield running
    finally:
        running.kill()  # a with statement alone would wait for ever where a test fails
        running.communicate()


def await_both(running: subprocess.Popen[str]) -> None:
    assert running.stdout is not None
    lines = [running.stdout.readline() for _ in range(2)]
    assert sorted(lines) == ["up 0 0 2 2\n", "up 1 1 2 2\n"]


@pytest.mark.parametrize(
    ("ranks", "code"),
    [(("0", "0"), 0), (("3", "3"), 3), (("3", "0"), 3), (("2", "hang"), 2), (("hang", "die"), 137)],
)
def test_the_exit_code_is_that_of_the_program(ranks: tuple[str, ...], code: int) -> None:
    began = time.monotonic()
    out, _ = start(*ranks).communicate(timeout=120)
    assert sorted(line for line in out.splitlines() if line.startswith("up")) == ["up 0 0 2 2", "up 1 1 2 2"]
    assert time.monotonic() - began < 60  # nobody waits for those that hang


def test_who_is_asked_to_end_has_time_to_save() -> None:
    with started("wait", "wait") as running:
        await_both(running)
        running.send_signal(signal.SIGTERM)
        assert running.wait(timeout=60) == 3


def test_nobody_outlives_a_launcher_that_is_killed(tmp_path: Path) -> None:
    with started("hang", "hang", NS_TEST_MARK=str(tmp_path)) as running:
        await_both(running)
        running.kill()

        def alive() -> bool:
            mark = f"NS_TEST_MARK={tmp_path}".encode()
            for folder in Path("/proc").glob("[0-9]*"):
                try:
                    if mark in (folder / "environ").read_bytes().split(b"\0"):
                        return True
                except OSError:
                    continue
            return False

        wait_until("they are gone", lambda: not alive(), 30)


def run_chain(folder: Path, script: str, parts: int) -> None:
    """Run a chain of jobs on this machine."""
    main = Component(name="main", commands=(("bash", "-c", script),), role="nemo-skills")
    jobs = chain((Job(name="t", components=(main,), unfinished_code=3),), parts - 1)
    after = Component(name="main", commands=(("touch", str(folder / "after")),), role="nemo-skills")
    last = Job(name="t-average", components=(after,), after=(jobs[-1].name,))
    launch(Plan(expname="t", cluster=ClusterConfig(), jobs=(*jobs, last), log_dir=str(folder / "logs")))


COUNT = 'echo x >> "{0}/runs"; [ $(wc -l < "{0}/runs") -ge {1} ] || exit 3'


def test_a_chain_on_this_machine_goes_on_until_it_is_finished(tmp_path: Path) -> None:
    run_chain(tmp_path, COUNT.format(tmp_path, 2), 4)
    assert (tmp_path / "runs").read_text().count("x") == 2  # the others had nothing left to do
    assert (tmp_path / "after").exists()
    states = {one.job.name: one.state.state for one in local_statuses([latest("t")])}
    assert states == {"t": "TIMEOUT", "t-part2": "COMPLETED", "t-part3": "COMPLETED",
                      "t-part4": "COMPLETED", "t-average": "COMPLETED"}  # fmt: skip


@pytest.mark.parametrize(("script", "code", "runs"), [(COUNT, 3, 3), ('echo x >> "{0}/runs"; exit 7', 7, 1)])
def test_a_chain_that_is_too_short_or_fails(tmp_path: Path, script: str, code: int, runs: int) -> None:
    with pytest.raises(JobFailedError) as failed:
        run_chain(tmp_path, script.format(tmp_path, 9), 3)
    assert failed.value.exit_code == code
    assert (tmp_path / "runs").read_text().count("x") == runs
    assert not (tmp_path / "after").exists()
