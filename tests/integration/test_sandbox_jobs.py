"""Jobs that bring a sandbox along (`--with_sandbox`): on this machine, in Docker, on Slurm."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_skills.code_execution import finding
from nemo_skills.core.errors import UserError
from tests.integration.docker_jobs import DockerUser
from tests.integration.generation import read_rows
from tests.integration.sandboxes import CANARY, SCRIPT, SCRIPTED_ANSWER
from tests.integration.slurm_jobs import BARE, CONTAINER, SlurmUser

OPTIONS = (
    "--with_sandbox",
    f"--server_args=--script {shlex.quote(json.dumps(SCRIPT))}",
    "++code_execution=true",
)


def ask(folder: Path) -> None:
    (folder / "in.jsonl").write_text('{"question": "the lasting one"}\n')


def check(output_dir: Path) -> None:
    [row] = read_rows(output_dir / "generation" / "output.jsonl")
    assert row["generation"] == SCRIPTED_ANSWER
    assert row["num_code_executions"] == 2
    log = (output_dir / "generation-logs" / "generate-sandbox.log").read_text()
    assert "sandbox listens on http://127.0.0.1:" in log
    assert "NOT ISOLATED" not in log


def test_on_this_machine(ns: list[str], tmp_path: Path) -> None:
    ask(tmp_path)
    argv = [
        *ns, "generate", "--server_type=stub", "--model=stub", f"--input_file={tmp_path}/in.jsonl",
        f"--output_dir={tmp_path}/out", "++prompt_config=generic/default", *OPTIONS,
    ]  # fmt: skip
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "HF_TOKEN": CANARY}
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, env=env)
    assert done.returncode == 0, done.stderr
    check(tmp_path / "out")


def test_a_job_without_one_says_so_at_once(ns: list[str]) -> None:
    find = "from nemo_skills.code_execution import finding; finding.find_sandbox(None, ready_timeout_s=3600)"
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(find)}"
    done = subprocess.run([*ns, "run_cmd", command], capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert "This job has no sandbox. Running code needs a sandbox: launch with" in done.stdout + done.stderr


def test_where_nobody_knows_the_wait_is_shorter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NS_RUN_DIR", str(tmp_path))
    monkeypatch.setattr(finding, "_LAUNCHED_S", 0.3)
    with pytest.raises(UserError, match=r"No sandbox was started in this job within 0\.3 s"):
        finding.find_sandbox(None, ready_timeout_s=3600)
    # one that was started may take longer
    (tmp_path / "sandbox-0.json").write_text('{"state": "starting"}')
    with pytest.raises(UserError, match="The job's sandbox did not answer within 1 s"):
        finding.find_sandbox(None, ready_timeout_s=1)


@pytest.mark.service("docker")
def test_in_docker(docker_user: DockerUser) -> None:
    ask(docker_user.workspace)
    # as the shipped image: a user without rights, and no package of ours
    sandbox = docker_user.dockerfile("sandbox", "USER 65534:65534")
    images = {"nemo-skills": docker_user.python_image("python"), "sandbox": sandbox}
    config = docker_user.write_config(containers=images)
    done = docker_user.run([*docker_user.command(config), *OPTIONS])
    assert done.returncode == 0, done.stdout + done.stderr
    check(docker_user.workspace / "out put")


@pytest.mark.service("slurm")
@pytest.mark.parametrize("place", [BARE, CONTAINER])
def test_on_slurm(place: str, slurm_user: SlurmUser, request: pytest.FixtureRequest) -> None:
    if place == CONTAINER:
        request.getfixturevalue("container_rootfs")
    slurm_user.use(place)
    slurm_user.settings["containers"]["sandbox"] = slurm_user.settings["containers"]["nemo-skills"]
    ask(slurm_user.workspace)
    assert slurm_user.generate(*OPTIONS) == 0
    assert slurm_user.wait() == {"generate": "COMPLETED"}
    check(slurm_user.workspace / "out put")
