"""`ns generate` in containers of a real Docker engine."""

import hashlib
import json
import os
import shutil
import signal
import stat
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests.conftest import vllm_python
from tests.integration.docker_jobs import DockerUser, python_mounts
from tests.integration.generation import read_rows, wait_for, write_rows

pytestmark = pytest.mark.service("docker")


@pytest.fixture
def user(docker_user: DockerUser) -> DockerUser:
    return docker_user


def test_stub_rows_logs_and_done_files_are_on_the_host(user: DockerUser) -> None:
    source = write_rows(user.workspace / "in.jsonl", 5)
    command = user.command(user.write_config())
    ended = user.run(command)
    assert ended.returncode == 0, ended.stderr
    rows = read_rows(user.workspace / "out put/generation/output.jsonl")
    assert [row["id"] for row in rows] == [row["id"] for row in read_rows(source)]
    assert all(row["generation"] and row["finish_reason"] == "stop" for row in rows)
    logs = user.workspace / "out put/generation-logs"
    assert (
        "5 rows are in /workspace/out put/generation/output.jsonl" in (logs / "generate-main.log").read_text()
    )
    assert "stub listens on" in (logs / "generate-server.log").read_text()
    # neither Docker nor NeMo-Run adds a word of its own
    assert [line.split()[1:3] for line in ended.stderr.splitlines()] == [["INFO", "building"]]
    assert [line.split(" ", 2)[2] for line in ended.stdout.splitlines() if " INFO " in line] == [
        "The first prompt:",
        "5 rows are in /workspace/out put/generation/output.jsonl.",
    ]
    assert len([line for line in ended.stdout.splitlines() if line]) == 3

    again = user.run(command)
    assert again.returncode == 0
    assert "is done; --rerun_done does it again" in again.stderr
    assert "building" not in again.stderr


@pytest.mark.service("hf")
def test_transformers_server(user: DockerUser) -> None:
    _generate_with_real_server(user, "hf", {}, [])


@pytest.mark.service("vllm")
def test_vllm_server_in_an_image_of_its_own(user: DockerUser) -> None:
    libraries = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    numa = next(line.split()[-1] for line in libraries.splitlines() if "libnuma.so.1 " in line)
    shutil.copy(numa, user.folder / "libnuma.so.1")
    # Dockerfiles in a folder of that name copy from the one around it
    images = {"vllm": user.python_image("vllm", vllm_python(), f'COPY ["libnuma.so.1", "{numa}"]')}
    _generate_with_real_server(
        user, "vllm", images, python_mounts(vllm_python()), server_args="--max-model-len=512 --enforce-eager"
    )


def _generate_with_real_server(
    user: DockerUser, server_type: str, images: dict[str, str], mounts: list[str], **options: str
) -> None:
    from nemo_skills.examples.tiny_model import build

    build(user.workspace / "mo del")
    write_rows(user.workspace / "in.jsonl", 3)
    all_mounts = dict.fromkeys([f"{user.workspace}:/workspace", *python_mounts(), *mounts])
    config = user.write_config(
        containers={"nemo-skills": user.python_image("python"), **images},
        mounts=list(all_mounts),
        env_vars=["HF_HUB_OFFLINE=1", "VLLM_CPU_KVCACHE_SPACE=1"],
    )
    command = user.command(config, server_type=server_type, model="/workspace/mo del", **options)
    ended = user.run([*command, "++inference.tokens_to_generate=8"])
    log = user.workspace / "out put/generation-logs/generate-server.log"
    assert ended.returncode == 0, ended.stderr + log.read_text()
    rows = read_rows(user.workspace / "out put/generation/output.jsonl")
    assert len(rows) == 3
    assert all(row["generation"] and 0 < row["num_generated_tokens"] <= 8 for row in rows)


CANARY = "canary-'\"$5-of-the-tests"


class Watch(threading.Thread):
    """Looks for the canary, several times a second, wherever others could."""

    def __init__(self, user: DockerUser) -> None:
        super().__init__(daemon=True)
        self.user = user
        self.found: set[str] = set()
        self.inspected: set[str] = set()
        self.modes: set[int] = set()
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.is_set():
            self.look()

    def look(self) -> None:
        names = self.user.containers()
        self.inspected |= set(names)
        inspect = subprocess.run(
            ["docker", "inspect", *names], env=self.user.engine.env, capture_output=True, text=True
        )
        processes = subprocess.run(["ps", "axwwo", "args"], capture_output=True, text=True)
        for place, text in {"docker inspect": inspect.stdout, "ps": processes.stdout}.items():
            if "canary-" in text:
                self.found.add(place)
        for path in files_with_canary(self.user.folder, self.user.engine.root / "data" / "containers"):
            try:
                self.modes.add(stat.S_IMODE(path.stat().st_mode))
            except FileNotFoundError:
                continue
            if not path.name.endswith(".secrets.env"):
                self.found.add(str(path))


def files_with_canary(*folders: Path) -> list[Path]:
    argv = ["grep", "--recursive", "--files-with-matches", "--null", "canary-", *map(str, folders)]
    found = subprocess.run(argv, capture_output=True).stdout
    return [Path(os.fsdecode(name)) for name in found.split(b"\0") if name]


def test_secrets_arrive_and_are_seen_nowhere(user: DockerUser) -> None:
    write_rows(user.workspace / "in.jsonl", 2)
    config = user.write_config(env_vars=["MY_TOKEN", "PLAIN=a 'plain' one"], required_env_vars=["HF_TOKEN"])
    keep = 'printf %s "$HF_TOKEN$MY_TOKEN" | sha256sum > /workspace/sum; echo "$PLAIN" > /workspace/plain'
    command = user.command(config, preprocess_cmd=f"sleep 1; {keep}")
    refused = user.run(command)
    assert refused.returncode == 2
    assert "HF_TOKEN" in refused.stderr

    watch = Watch(user)
    watch.start()
    ended = user.run(command, HF_TOKEN=CANARY, MY_TOKEN=f"my-{CANARY}")
    watch.over.set()
    watch.join()
    assert ended.returncode == 0, ended.stderr
    expected = hashlib.sha256(f"{CANARY}my-{CANARY}".encode()).hexdigest()
    assert (user.workspace / "sum").read_text().split()[0] == expected
    assert (user.workspace / "plain").read_text() == "a 'plain' one\n"
    assert len(watch.inspected) == 2
    assert watch.found == set()
    assert watch.modes == {0o600}  # it was there
    assert files_with_canary(user.folder, user.engine.root / "data" / "containers") == []
    assert "canary-" not in ended.stdout + ended.stderr


def answered(journal: Path) -> int:
    """How many answers a journal holds."""
    return journal.read_bytes().count(b'"num_generated_tokens":') if journal.exists() else 0


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_signals_leave_no_container_process_or_secret(user: DockerUser, signum: int, code: int) -> None:
    write_rows(user.workspace / "in.jsonl", 400)
    command = user.command(user.write_config(), server_args="--latency=0.5")
    before = set(user.engine.processes())
    process = user.start([*command, "++max_concurrent_requests=4"], HF_TOKEN=CANARY)
    journal = user.workspace / "out put/generation/output.jsonl-async"
    wait_for(lambda: answered(journal), 60)
    started = time.monotonic()
    process.send_signal(signum)
    assert process.wait(timeout=30) == code
    # nobody is left to clean up after SIGKILL, but Docker's clients pass the end of their parent on
    wait_for(lambda: user.containers() == [], 15 if signum == signal.SIGKILL else 0.1)
    assert time.monotonic() - started < 15
    wait_for(lambda: set(user.engine.processes()) <= before, 5)
    assert files_with_canary(user.folder) == []
    assert "Traceback" not in (user.folder / "stderr").read_text()
    assert 0 < answered(journal) < 400


def test_an_interrupted_run_is_finished_by_the_same_command(user: DockerUser) -> None:
    write_rows(user.workspace / "in.jsonl", 40)
    command = user.command(user.write_config(), server_args="--latency=0.3")
    process = user.start([*command, "++max_concurrent_requests=4"])
    journal = user.workspace / "out put/generation/output.jsonl-async"
    wait_for(lambda: answered(journal), 60)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 143
    assert user.run(command).returncode == 0
    rows = read_rows(user.workspace / "out put/generation/output.jsonl")
    assert [row["id"] for row in rows] == list(range(40))


def test_a_failing_main_decides_the_exit_code(user: DockerUser) -> None:
    (user.workspace / "in.jsonl").write_text("{broken\n")
    ended = user.run(user.command(user.write_config()))
    assert ended.returncode == 2
    assert "in.jsonl:1" in ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (user.workspace / "out put/generation/output.jsonl").exists()


def test_a_failing_server_ends_the_job_with_its_last_words(user: DockerUser) -> None:
    write_rows(user.workspace / "in.jsonl", 1)
    ended = user.run(user.command(user.write_config(), server_args="--no-such-flag"))
    assert ended.returncode == 1
    assert "unrecognized arguments: --no-such-flag" in ended.stdout + ended.stderr


def test_seeds_and_chunks_are_merged_in_one_job(user: DockerUser) -> None:
    write_rows(user.workspace / "in.jsonl", 7)
    ended = user.run(user.command(user.write_config(), num_random_seeds=2, num_chunks=2))
    assert ended.returncode == 0, ended.stderr
    folder = user.workspace / "out put/generation"
    for seed in (0, 1):
        assert [row["id"] for row in read_rows(folder / f"output-rs{seed}.jsonl")] == list(range(7))


def test_dry_run_needs_no_engine(user: DockerUser) -> None:
    ended = user.run([*user.command(user.write_config()), "--dry_run"], DOCKER_HOST="unix:///nowhere")
    assert ended.returncode == 0, ended.stderr
    assert "exec docker run --rm" in ended.stdout
    assert not (user.workspace / "out put").exists()


def test_chained_experiments(user: DockerUser) -> None:
    write_rows(user.workspace / "in.jsonl", 2)
    config = user.write_config()
    first = user.command(config, expname="first")
    second = user.command(config, expname="second", run_after="first", output_dir="/workspace/two")
    unknown = user.run(second)
    assert unknown.returncode == 2
    assert "no experiment 'first'" in unknown.stderr

    failed = user.run([*first, "++server.api_key_env=NOT_SET_ANYWHERE_AT_ALL"])
    assert failed.returncode != 0
    refused = user.run(second)
    assert refused.returncode == 2
    assert "experiment 'first' has not succeeded" in refused.stderr
    assert str(user.workspace) in refused.stderr  # its logs, where the user finds them
    assert not (user.workspace / "two").exists()

    assert user.run(first).returncode == 0
    assert user.run(second).returncode == 0
    assert json.loads((user.workspace / "two/generation/output.jsonl").read_text().splitlines()[1])["id"] == 1
