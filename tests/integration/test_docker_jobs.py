"""Jobs as containers of a real Docker engine: words, exit codes, ends, owners, images and mistakes."""

import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nemo_skills.core.errors import JobFailedError, UserError
from nemo_skills.pipeline import cli
from nemo_skills.pipeline.launch import docker, docker_engine
from nemo_skills.pipeline.launch.plan import Component, Job
from nemo_skills.pipeline.launch.supervise import HELPER_GRACE_S
from tests.integration.docker_jobs import DockerUser
from tests.integration.generation import read_rows, wait_for, write_rows
from tests.services.docker import BASE_IMAGE

pytestmark = pytest.mark.service("docker")
REPO = Path(__file__).resolve().parents[2]


def logged(user: DockerUser, component: str = "main", expname: str = "exp") -> str:
    return (user.workspace / "logs" / f"{expname}-{component}.log").read_text()


def test_words_reach_a_container_as_they_are(docker_user: DockerUser) -> None:
    words = [
        "a b",
        "it's",
        '"q"',
        "$HOME",
        "`id`",
        "\\",
        "*",
        "new\nline",
        "",
        "ünï",
        "{port}",
        "!x",
        "#",
        "~",
    ]
    plan = docker_user.plan("")
    main = Component(name="main", commands=(("printf", "<%s>", *words),), role="nemo-skills")
    docker.submit(replace(plan, jobs=(Job(name="exp", components=(main,)),)))
    assert logged(docker_user) == "".join(f"<{word}>" for word in words)


def test_exit_code_streams_and_environment(docker_user: DockerUser) -> None:
    script = 'echo out; echo err >&2; echo "$NS_RUN_DIR $PWD $NS_TEST_IMAGE $PLAIN"; exit 37'
    with pytest.raises(JobFailedError, match=re.escape(str(docker_user.workspace))) as failure:
        docker.submit(docker_user.plan(script, env_vars=["PLAIN=a 'b'"]))
    assert failure.value.exit_code == 37
    lines = logged(docker_user).splitlines()
    assert sorted(lines) == ["/nemo_run/job/run /nemo_run/code base a 'b'", "err", "out"]


def test_jobs_after_a_failed_one_are_not_started(docker_user: DockerUser) -> None:
    plan = docker_user.plan("exit 3")
    second = Component(name="main", commands=(("touch", "/workspace/second"),), role="nemo-skills")
    with pytest.raises(JobFailedError):
        docker.submit(replace(plan, jobs=(*plan.jobs, Job(name="second", components=(second,)))))
    assert not (docker_user.workspace / "second").exists()


def test_a_stubborn_server_ends_soon_after_the_main(docker_user: DockerUser) -> None:
    stubborn = "trap '' TERM; touch $NS_RUN_DIR/up; (setsid sleep 1000 &); while true; do sleep 1; done"
    main = "until [ -e $NS_RUN_DIR/up ]; do sleep 0.05; done; date +%s.%N > /workspace/ended"
    docker.submit(docker_user.plan(main, server=stubborn))
    took = time.time() - float((docker_user.workspace / "ended").read_text())
    assert HELPER_GRACE_S < took < HELPER_GRACE_S + 3
    assert docker_user.containers() == []


def test_a_polite_server_ends_within_two_seconds_of_the_main(docker_user: DockerUser) -> None:
    server = "trap 'exit 0' TERM; touch $NS_RUN_DIR/up; while true; do sleep 0.1; done"
    main = "until [ -e $NS_RUN_DIR/up ]; do sleep 0.05; done; date +%s.%N > /workspace/ended"
    docker.submit(docker_user.plan(main, server=server))
    assert time.time() - float((docker_user.workspace / "ended").read_text()) < 2


def test_a_server_that_ends_first_is_blamed(docker_user: DockerUser) -> None:
    with pytest.raises(JobFailedError, match=r"server was killed|server ended.*\n.*no memory, sadly"):
        docker.submit(docker_user.plan("sleep 100", server="echo no memory, sadly; kill -9 $$"))


_SUBMIT = """
import sys
from pathlib import Path
import nemo_run  # slow to import: done before we say that we are ready
from nemo_skills.pipeline.cluster.config import parse_cluster_config
from nemo_skills.pipeline.launch import docker
from nemo_skills.pipeline.launch.plan import Component, Job, Plan
config, *scripts = sys.argv[1:]
components = [
    Component(name=name, commands=(("bash", "-c", script),), role="nemo-skills")
    for name, script in zip(["main", "server"], scripts)
]
job = Job(name="exp", components=tuple(components))
cluster = parse_cluster_config(Path(config))
print("ready", flush=True)
try:
    docker.submit(Plan(expname="exp", cluster=cluster, jobs=(job,), log_dir="/workspace/logs"))
except KeyboardInterrupt:
    sys.exit(130)
"""


def submit_elsewhere(user: DockerUser, *scripts: str) -> "subprocess.Popen[str]":
    """Submit a job, main first, from another process; returns when it is about to."""
    user.config()
    process = subprocess.Popen(
        [sys.executable, "-c", _SUBMIT, str(user.folder / "docker.yaml"), *scripts],
        env={**os.environ, "PYTHONPATH": str(REPO)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_the_main_may_save_when_the_job_is_told_to_end(docker_user: DockerUser) -> None:
    save = "trap 'sleep 1; echo saved > /workspace/saved; exit 5' TERM"
    process = submit_elsewhere(docker_user, f"{save}; touch /workspace/up; while true; do sleep 0.1; done")
    wait_for((docker_user.workspace / "up").exists)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 143
    assert (docker_user.workspace / "saved").exists()


@pytest.mark.parametrize("delay", [0.2, 0.4, 0.6, 0.8])
def test_ctrl_c_at_any_moment_leaves_no_container(docker_user: DockerUser, delay: float) -> None:
    process = submit_elsewhere(docker_user, "sleep 1000", "sleep 1000")
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
    time.sleep(0.3)  # for a container that would be born late; the fixture looks for it


def test_cancel_removes_what_a_killed_ns_has_left_and_nothing_else(docker_user: DockerUser) -> None:
    label = f"--label={docker.LABEL}=exp_1"  # of another user, under the same name
    other = ["run", "--detach", "--rm", "--network=host", label, "--name=other", BASE_IMAGE, "sleep", "1000"]
    docker_user.engine.docker(*other)
    process = submit_elsewhere(docker_user, "trap '' TERM; touch /workspace/up; while true; do sleep 1; done")
    wait_for((docker_user.workspace / "up").exists)
    process.kill()
    process.wait()
    time.sleep(1)
    assert len(docker_user.containers()) == 2
    cli.load_command("cancel")(expnames="exp")
    assert docker_user.containers() == ["other"]
    docker_user.engine.docker("rm", "--force", "other")


# ---- mounts ----


def test_mounts_of_any_name_nested_and_read_only(docker_user: DockerUser) -> None:
    odd = docker_user.folder / 'a,b="c" d'
    odd.mkdir()
    (odd / "file").write_text("here")
    mounts = [f"{docker_user.workspace}:/workspace", f"{odd}:/workspace/in,side:ro"]
    script = (
        "cat '/workspace/in,side/file'; touch '/workspace/in,side/new' 2>/dev/null || echo -n ' read-only'"
    )
    docker.submit(docker_user.plan(script, mounts=mounts))
    assert logged(docker_user) == "here read-only"
    assert [p.name for p in odd.iterdir()] == ["file"]


def test_missing_mount_sources_are_all_named_and_none_is_created(docker_user: DockerUser) -> None:
    folders = [docker_user.folder / "typo1", docker_user.folder / "typo2"]
    mounts = [f"{docker_user.workspace}:/workspace", *(f"{f}:/{f.name}" for f in folders)]
    with pytest.raises(UserError, match=r"mounted paths do not exist.*typo1.*typo2"):
        docker.submit(docker_user.plan("true", mounts=mounts))
    assert not any(folder.exists() for folder in folders)


def test_logs_outside_of_all_mounts_are_refused(docker_user: DockerUser) -> None:
    with pytest.raises(UserError, match="'/elsewhere/logs' is not mounted"):
        docker.submit(replace(docker_user.plan("true"), log_dir="/elsewhere/logs"))


def test_check_mounted_paths_creates_and_mounts_the_output_folder(docker_user: DockerUser) -> None:
    output, source = docker_user.folder / "new/output", docker_user.folder / "in.jsonl"
    write_rows(source, 2)
    config = docker_user.write_config()
    command = docker_user.command(config, input_file=source, output_dir=output, model="m")
    refused = docker_user.run(command)
    assert refused.returncode == 2
    assert "is not mounted" in refused.stderr
    ended = docker_user.run([*command, "--check_mounted_paths"])
    assert ended.returncode == 0, ended.stderr
    assert len(read_rows(output / "generation/output.jsonl")) == 2


# ---- users ----


@pytest.fixture
def stranger(docker_user: DockerUser) -> Iterator[DockerUser]:
    """A user who is not root, and may use the engine."""
    engine = docker_user.engine
    engine.root.parent.chmod(0o711)
    engine.root.chmod(0o711)
    engine.socket.chmod(0o666)
    with tempfile.TemporaryDirectory(prefix="ns-user-", dir="/tmp") as name:
        user = DockerUser(engine, Path(name))
        (user.folder / "home").mkdir()
        for path in (user.folder, user.workspace, user.work_dir, user.folder / "home"):
            shutil.chown(path, 12345, 23456)
        yield user
    engine.socket.chmod(0o600)


def as_stranger(user: DockerUser, argv: list[str], **env: str) -> subprocess.CompletedProcess[str]:
    """Run a Python program as that user, with Debian's Python when ours lies in a closed folder."""
    become = ["setpriv", "--reuid=12345", "--regid=23456", "--groups=34567"]
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    environ = {
        "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
        "HOME": str(user.folder / "home"),
        "NEMORUN_HOME": str(user.folder / "home/runs"),
        "PYTHONPATH": f"{REPO}:{packages}",
        "DOCKER_HOST": user.engine.host,
    }
    python = next(
        p
        for p in (sys.executable, "/usr/bin/python3")
        if not subprocess.run([*become, p, "-c", "import aiohttp, orjson"], env=environ, stderr=-3).returncode
    )
    return subprocess.run(
        [*become, python, *argv[1:]], cwd=user.work_dir, env=environ | env, capture_output=True, text=True
    )


def test_results_belong_to_the_user(stranger: DockerUser) -> None:
    write_rows(stranger.workspace / "in.jsonl", 2)
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    config = stranger.write_config(
        containers={"nemo-skills": BASE_IMAGE},
        mounts=[f"{stranger.workspace}:/workspace", f"{packages}:/packages:ro"],
        env_vars=["PYTHONPATH=/packages"],
    )
    show = "id > /workspace/id; echo $HOME > /workspace/home; python3 -c 'import getpass; getpass.getuser()'"
    command = stranger.command(config, preprocess_cmd=show)
    ended = as_stranger(stranger, command, HF_TOKEN="of-the-stranger")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert len(read_rows(stranger.workspace / "out put/generation/output.jsonl")) == 2
    made = [p for p in stranger.folder.rglob("*") if not p.is_relative_to(stranger.folder / "dockerfiles")]
    made.remove(stranger.workspace / "in.jsonl")
    made.remove(config)
    assert {(p.lstat().st_uid, p.lstat().st_gid) for p in made} == {(12345, 23456)}
    assert (stranger.workspace / "id").read_text().split() == [
        *("uid=12345", "gid=23456", "groups=23456,34567"),
    ]
    assert (stranger.workspace / "home").read_text() == "/tmp\n"


def test_no_permission_is_one_line(stranger: DockerUser) -> None:
    stranger.engine.socket.chmod(0o600)
    ended = as_stranger(stranger, stranger.command(stranger.write_config()))
    assert ended.returncode == 2
    [line] = ended.stderr.splitlines()
    assert "permission denied" in line
    assert line.endswith("Are you in the group 'docker'?")


# ---- mistakes ----


def test_no_engine_is_one_line(docker_user: DockerUser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///no/such/socket")
    with pytest.raises(UserError, match=r"^executor local: Cannot connect to the Docker daemon at [^\n]*$"):
        docker.submit(docker_user.plan("true"))


def test_no_docker_is_one_line(docker_user: DockerUser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match=r"^executor local needs Docker, but there is no 'docker' command$"):
        docker.submit(docker_user.plan("true"))


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (
            "127.0.0.1:1/none:latest",
            r"containers\.nemo-skills: cannot pull 127\.0\.0\.1:1/none:latest: .*refused",
        ),
        ("Bad Name", "cannot pull Bad Name: .*must be lowercase"),
        ("python", "'python' is not an image"),
        ("/x/y.sqsh", "'sqsh:/x/y.sqsh' is not an image"),
        ("dockerfile:/no/such/Dockerfile", "/no/such/Dockerfile does not exist"),
    ],
)
def test_images_that_cannot_be_had_are_one_line(
    docker_user: DockerUser, reference: str, message: str
) -> None:
    with pytest.raises(UserError, match=message) as failure:
        docker.submit(docker_user.plan("true", containers={"nemo-skills": reference}))
    assert "\n" not in str(failure.value)


@pytest.fixture
def messages() -> Iterator[list[str]]:
    """What the executor logs, at all levels; importing NeMo-Run disturbs pytest's own fixture for that."""
    found: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(f"{record.levelname} {record.getMessage()}")  # type: ignore
    before = docker_engine.LOG.level
    docker_engine.LOG.addHandler(handler)
    docker_engine.LOG.setLevel(logging.DEBUG)
    yield found
    docker_engine.LOG.removeHandler(handler)
    docker_engine.LOG.setLevel(before)


def test_images_are_built_on_demand_and_quietly(docker_user: DockerUser, messages: list[str]) -> None:
    good = docker_user.dockerfile("good", "RUN echo from the build; echo made > /made")
    docker.submit(docker_user.plan("cat /made", containers={"nemo-skills": good}))
    assert logged(docker_user) == "made\n"
    assert "DEBUG from the build" in messages
    [shown] = [line for line in messages if not line.startswith("DEBUG")]
    assert shown.startswith("INFO building nemo-skills-good:")

    # the same file, changed: no old image is used
    docker_user.dockerfile("good", "RUN echo new > /made")
    docker.submit(docker_user.plan("cat /made", containers={"nemo-skills": good}, expname="again"))
    assert logged(docker_user, expname="again") == "new\n"


def test_a_failing_build_shows_the_end_of_its_output(docker_user: DockerUser) -> None:
    bad = docker_user.dockerfile("bad", "RUN echo what went wrong; exit 3")
    with pytest.raises(UserError, match=r"Dockerfile\.bad cannot be built(.|\n)*what went wrong"):
        docker.submit(docker_user.plan("true", containers={"nemo-skills": bad}))
