"""Generation without a server, as real processes: any number of them, killed and resumed, same bytes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPO, vllm_python
from tests.integration.generation import wait_for

ROWS = 11
MAIN = "nemo_skills.inference.run_generation"
QUIET = {"HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_CPU_KVCACHE_SPACE": "1"}
LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_JOB_ID")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    from nemo_skills.examples.tiny_model import build

    return str(build(tmp_path_factory.mktemp("models") / "tiny ' model"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts of different lengths; their number fits neither batches nor ranks."""
    path = tmp_path_factory.mktemp("input") / "in put.jsonl"
    rows = [{"input": f"({i}) Say something{' more' * (7 * i % 12)}.", "output": ""} for i in range(ROWS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def quoted(value: object) -> str:
    from nemo_skills.core.hydra import encode

    return encode(value)


def arguments(model: str, source: Path, folder: Path, **overrides: object) -> list[str]:
    """Return arguments; `model__x=1` stands for `model.x=1`."""
    values: dict[str, object] = {
        "pretrained_checkpoint.restore_from_path": model,
        "model.data.train_ds.file_path": str(source),
        "exp_manager.explicit_log_dir": str(folder),
        "model.generation.num_responses_to_gen": 2,
        "model.generation.length_params.max_length": 16,
        "model.encoder_seq_length": 512,
        "model.micro_batch_size": 2,
        "model.global_batch_size": 4,
        **{name.replace("__", "."): value for name, value in overrides.items()},
    }
    return [f"++{name}={quoted(value)}" for name, value in values.items()]


def environment(**changes: str) -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if name not in LAUNCHERS}
    return env | QUIET | {"PYTHONPATH": str(REPO)} | changes


def run(argv: list[str], **env: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(argv, env=environment(**env), capture_output=True, text=True, timeout=280)


def alone(args: list[str], **env: str) -> "subprocess.CompletedProcess[str]":
    return run([sys.executable, "-m", MAIN, *args], **env)


def start_rank(args: list[str], rank: int, size: int, log: Path) -> "subprocess.Popen[bytes]":
    """Start one process as a launcher would that knows nothing of torch."""
    env = environment(RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT="29611")
    with log.open("ab") as out:
        return subprocess.Popen([sys.executable, "-m", MAIN, *args], env=env, stdout=out, stderr=out)


def output(folder: Path) -> Path:
    return folder / "generations" / "generations.jsonl"


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def reference(model: str, source: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What one process writes."""
    folder = tmp_path_factory.mktemp("reference")
    done = alone(arguments(model, source, folder))
    assert done.returncode == 0, done.stderr
    return output(folder).read_bytes()


@pytest.mark.service("hf")
def test_what_one_process_writes(reference: bytes, source: Path) -> None:
    rows = [json.loads(line) for line in reference.splitlines()]
    assert [row["prompt"] for row in rows] == [row["input"] for row in read(source)]
    assert [row["step"] for row in rows] == [0] * 4 + [1] * 4 + [2] * 3
    assert [row["consumed_samples"] for row in rows] == [4] * 4 + [8] * 4 + [11] * 3
    assert {len(row["responses"]) for row in rows} == {2}
    assert len({text for row in rows for text in row["responses"]}) == 2 * ROWS


@pytest.mark.service("hf")
def test_two_ranks_of_torchrun(model: str, source: Path, weird_tmp_path: Path, reference: bytes) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", MAIN]
    done = run([sys.executable, *launcher, *arguments(model, source, weird_tmp_path, trainer__devices=2)])
    assert done.returncode == 0, done.stderr
    assert output(weird_tmp_path).read_bytes() == reference


@pytest.mark.service("hf")
def test_three_ranks_of_its_own(model: str, source: Path, weird_tmp_path: Path, reference: bytes) -> None:
    done = alone(arguments(model, source, weird_tmp_path, trainer__devices=3))
    assert done.returncode == 0, done.stderr
    assert output(weird_tmp_path).read_bytes() == reference
    names = sorted(path.name for path in output(weird_tmp_path).parent.iterdir())
    assert names == ["generations.jsonl", "generations.jsonl.done"]


@pytest.mark.service("hf")
def test_kill_one_rank_in_the_middle_and_go_on_with_other_numbers(
    model: str, source: Path, weird_tmp_path: Path
) -> None:
    longer = {
        "model__generation__length_params__max_length": 256,
        "model__generation__num_responses_to_gen": 8,
    }
    args = arguments(model, source, weird_tmp_path / "out", **longer)
    other = alone(arguments(model, source, weird_tmp_path / "reference", **longer))
    assert other.returncode == 0, other.stderr
    result, log = output(weird_tmp_path / "out"), weird_tmp_path / "log"
    folder = result.with_name("generations.jsonl-ranks")
    processes = [start_rank(args, rank, 3, log) for rank in range(3)]
    try:
        wait_for(lambda: size_of(folder / "rank-00001.jsonl"), 120)
        processes[1].kill()
        # the others do their share and leave; nobody merges
        assert [process.wait(timeout=200) for process in processes] == [0, -signal.SIGKILL, 0], (
            log.read_text()
        )
    finally:
        end(processes)
    assert not result.exists()
    in_the_middle = sum(path.read_bytes().count(b"\n") for path in folder.glob("*.jsonl"))
    assert 0 < in_the_middle < ROWS

    processes = [start_rank(args, rank, 2, log) for rank in range(2)]
    try:
        assert [process.wait(timeout=200) for process in processes] == [0, 0], log.read_text()
    finally:
        end(processes)
    assert f"going on from {in_the_middle} of {ROWS} rows" in log.read_text()
    assert result.read_bytes() == output(weird_tmp_path / "reference").read_bytes()


@pytest.mark.service("hf")
def test_a_killed_process_ends_the_whole_job_of_our_own_launcher(
    model: str, source: Path, weird_tmp_path: Path, reference: bytes
) -> None:
    slow = arguments(model, source, weird_tmp_path, trainer__devices=2)
    longer = ["++model.generation.num_responses_to_gen=64", "++model.generation.length_params.max_length=256"]
    main = subprocess.Popen(
        [sys.executable, "-m", MAIN, *slow, *longer], env=environment(), stderr=subprocess.PIPE, text=True
    )
    try:
        children = Path(f"/proc/{main.pid}/task/{main.pid}/children")
        wait_for(lambda: len(children.read_text().split()) == 2, 60)
        ranks = [int(pid) for pid in children.read_text().split()]
        wait_for((output(weird_tmp_path).parent / "generations.jsonl-ranks" / "rank-00001.jsonl").exists, 60)
        os.kill(ranks[1], signal.SIGKILL)
        _, text = main.communicate(timeout=60)
        assert main.returncode == 128 + signal.SIGKILL
        assert "Process 1 of 2 was killed by signal 9" in text
        assert not any(Path(f"/proc/{pid}").exists() for pid in ranks)
    finally:
        end([main])


@pytest.mark.service("hf")
def test_a_second_job_on_the_same_output_is_refused(model: str, source: Path, weird_tmp_path: Path) -> None:
    long = arguments(
        model, source, weird_tmp_path, model__generation__num_responses_to_gen=64,
        model__generation__length_params__max_length=256,
    )  # fmt: skip
    first = start_rank(long, 0, 1, weird_tmp_path / "log")
    try:
        ranks = output(weird_tmp_path).with_name("generations.jsonl-ranks")
        wait_for((ranks / "rank-00000.jsonl").exists, 120)
        second = alone(long)
        assert second.returncode == 2
        assert "Another job is writing this output" in second.stderr
        assert "Traceback" not in second.stderr
    finally:
        end([first])


@pytest.mark.service("hf")
def test_the_whole_job_killed_and_resumed_by_our_own_launcher(
    model: str, source: Path, weird_tmp_path: Path, reference: bytes
) -> None:
    args = arguments(model, source, weird_tmp_path, trainer__devices=2)
    main = subprocess.Popen([sys.executable, "-m", MAIN, *args], env=environment(), stderr=subprocess.DEVNULL)
    children = Path(f"/proc/{main.pid}/task/{main.pid}/children")
    ranks: list[int] = []
    try:
        wait_for(lambda: len(children.read_text().split()) == 2, 60)
        ranks = [int(pid) for pid in children.read_text().split()]
        time.sleep(2)
    finally:
        end([main])
    # its ranks die with it, and so do their locks
    wait_for(lambda: not any(alive(pid) for pid in ranks), 10)
    done = alone(args)
    assert done.returncode == 0, done.stderr
    assert output(weird_tmp_path).read_bytes() == reference


@pytest.mark.service("hf")
def test_mistakes_without_a_traceback(model: str, source: Path, weird_tmp_path: Path) -> None:
    nemo = weird_tmp_path / "nemo"
    (nemo / "model_weights").mkdir(parents=True)
    bad = weird_tmp_path / "bad.jsonl"
    bad.write_text('{"input": "x"}\n{"inptu": "y"}\n', encoding="utf-8")
    for args, message in (
        (arguments(str(nemo), source, weird_tmp_path), "is a NeMo checkpoint. Convert it"),
        (arguments(str(weird_tmp_path / "no/such/model"), source, weird_tmp_path), "does not exist"),
        (arguments(model, bad, weird_tmp_path), f"{bad}:2: a row needs one of the keys input"),
        (arguments(model, source, weird_tmp_path, engine="trtllm"), "TensorRT-LLM comes with"),
        (
            arguments(model, source, weird_tmp_path, model__generation__length_params__max_length=512),
            "leave no room for a prompt",
        ),
    ):
        done = alone(args)
        assert done.returncode == 2, done.stderr
        assert message in done.stderr
        assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def vllm_reference(model: str, source: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("vllm")
    done = alone(vllm_arguments(model, source, folder))
    assert done.returncode == 0, done.stderr
    return output(folder).read_bytes()


def vllm_arguments(model: str, source: Path, folder: Path, **overrides: object) -> list[str]:
    engine = {"engine": "vllm", "engine_python": str(vllm_python()), "model__micro_batch_size": 4}
    return arguments(model, source, folder, **engine, **overrides)


@pytest.mark.service("vllm")
def test_two_ranks_of_vllm(model: str, source: Path, weird_tmp_path: Path, vllm_reference: bytes) -> None:
    done = alone(vllm_arguments(model, source, weird_tmp_path, trainer__devices=2))
    assert done.returncode == 0, done.stderr
    assert output(weird_tmp_path).read_bytes() == vllm_reference
    rows = read(output(weird_tmp_path))
    assert [row["prompt"] for row in rows] == [row["input"] for row in read(source)]


@pytest.mark.service("vllm")
def test_a_rank_of_vllm_killed_and_resumed(
    model: str, source: Path, weird_tmp_path: Path, vllm_reference: bytes
) -> None:
    args = vllm_arguments(model, source, weird_tmp_path)
    log = weird_tmp_path / "log"
    rank = start_rank(args, 0, 1, log)
    journal = output(weird_tmp_path).with_name("generations.jsonl-ranks") / "rank-00000.jsonl"
    try:
        wait_for(lambda: size_of(journal), 200)
        children = Path(f"/proc/{rank.pid}/task/{rank.pid}/children").read_text().split()
    finally:
        end([rank])
    wait_for(lambda: not any(alive(int(pid)) for pid in children), 10)
    done = alone(args)
    assert done.returncode == 0, done.stderr
    assert output(weird_tmp_path).read_bytes() == vllm_reference


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def end(processes: list["subprocess.Popen[Any]"]) -> None:
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.wait()
