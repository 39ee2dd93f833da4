"""Every way to spread a run over processes gives the losses and gradients of a single process."""

import importlib.util
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.integration.train_runs import (
    ONE_THREAD,
    build_small,
    largest_difference,
    metrics,
    pack_rows,
    sft_args,
    train_here,
    write_rows,
)

pytestmark = pytest.mark.service("train")

DRIVER = Path(__file__).with_name("train_driver.py")
TP, CP, FSDP = "model__tensor_model_parallel_size", "model__context_parallel_size", "model__fsdp"
ROWS, STEPS = 80, 4
STEADY: dict[str, Any] = {
    "trainer__sft__max_steps": STEPS,
    "trainer__sft__val_check_interval": 2,
    "trainer__sft__save_interval": 2,
}


class Runs:
    """Trains the same in different ways, and knows the reference."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows = write_rows(folder / "train.jsonl", ROWS)
        held_out = write_rows(folder / "held-out.jsonl", 21, seed=1)
        self.steady = {**STEADY, "model__data__validation_ds__file_path": held_out}
        self.models = {
            "llama": build_small(folder / "llama"),
            "qwen3": build_small(folder / "qwen3", "qwen3"),
            "tied": build_small(folder / "tied", tie_word_embeddings=True),
        }
        for kind in self.models:
            assert train_here(self.args(kind, "one"))

    def args(self, kind: str, name: str, **more: Any) -> list[str]:
        return sft_args(self.models[kind], self.rows, self.output(kind, name), **{**self.steady, **more})

    def output(self, kind: str, name: str) -> Path:
        return self.folder / f"{kind}-{name}"

    def spread(self, processes: int, cases: dict[tuple[str, str], dict[str, Any]]) -> None:
        """Train all cases with so many processes."""
        todo = [{"args": self.args(kind, name, **more)} for (kind, name), more in cases.items()]
        plan = self.folder / f"cases-{processes}.json"
        plan.write_text(json.dumps(todo))
        argv = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
        ended = subprocess.run(
            [*argv, str(processes), str(DRIVER), str(plan)],
            env=ONE_THREAD,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert ended.returncode == 0, ended.stderr[-5000:]

    def check(self, kind: str, name: str, share: float, reference: str = "one") -> None:
        """Compare a case with one process: figures, sharding, and the exported model."""
        from safetensors.torch import load_file

        assert (
            largest_difference(metrics(self.output(kind, reference)), metrics(self.output(kind, name))) < 1e-5
        )
        shares = json.loads((self.output(kind, name) / "shards.json").read_text())
        # None: it is no distributed tensor; adapters are in every process
        of_matrices = [value for key, value in shares.items() if "lora_" not in key]
        assert len(of_matrices) == 14
        assert set(of_matrices) == {share}
        exported = [
            load_file(self.output(kind, which) / f"checkpoints/step={STEPS}/hf/model.safetensors")
            for which in (reference, name)
        ]
        assert exported[0].keys() == exported[1].keys()
        for key, weight in exported[0].items():
            assert (exported[1][key] - weight).abs().max() < 2e-4


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("train"))


def test_two_processes(runs: Runs) -> None:
    packed, _ = pack_rows(runs.rows, runs.models["llama"], runs.folder / "packed", size=320, cp=2)
    packs: dict[str, Any] = {
        "model__data__train_ds__file_path": packed,
        "model__data__train_ds__packed_sequence": True,
        "model__data__train_ds__micro_batch_size": 1,
        "model__data__train_ds__global_batch_size": 4,
    }
    assert train_here(runs.args("llama", "packed", **packs))
    cases: dict[tuple[str, str], dict[str, Any]] = {
        ("tied", "fsdp"): {},
        ("llama", "copies"): {FSDP: False},
        ("tied", "tp"): {TP: 2},
        ("llama", "cp"): {CP: 2},
        ("llama", "packed-cp"): {CP: 2, **packs},
    }
    shares = [1 / 2, 1, 1 / 2, 1 / 2, 1 / 2]
    if importlib.util.find_spec("peft"):
        lora = {"model__peft__peft_scheme": "lora"}
        assert train_here(runs.args("llama", "lora", **lora))
        cases["llama", "lora-fsdp"] = lora
        shares.append(1 / 2)
    runs.spread(2, cases)
    for (kind, name), share in zip(cases, shares, strict=True):
        known = name.partition("-")[0]
        runs.check(kind, name, share, known if known in ("packed", "lora") else "one")


def test_four_processes(runs: Runs) -> None:
    cases: dict[tuple[str, str], dict[str, Any]] = {
        ("llama", "fsdp4"): {},
        # norms of single heads: gradients of several micro-batches must be added up with care
        ("qwen3", "tp-fsdp"): {TP: 2},
        ("llama", "cp4"): {CP: 4},
        ("qwen3", "tp-cp"): {TP: 2, CP: 2},
        # goes on from the checkpoint of a single process
        ("qwen3", "moved"): {TP: 2, FSDP: False},
    }
    moved = runs.output("qwen3", "moved")
    shutil.copytree(runs.output("qwen3", "one"), moved)
    shutil.rmtree(moved / f"checkpoints/step={STEPS}")
    runs.spread(4, cases)
    for (kind, name), share in zip(cases, (1 / 4, 1 / 4, 1 / 4, 1 / 4, 1 / 2), strict=True):
        runs.check(kind, name, share)


def test_processes_are_killed_and_told_to_stop_together(runs: Runs) -> None:
    """Under our launcher, which hands on the exit code; what is left of a killed save is no checkpoint."""
    args = runs.args("llama", "ended", trainer__sft__save_interval=1)
    argv = [sys.executable, "-m", "nemo_skills.training.launch", "--processes", "2", "--"]
    argv += ["-m", "nemo_skills.training.start_sft", *args]
    output = runs.output("llama", "ended")
    checkpoints = output / "checkpoints"

    def wait_for(pattern: str, process: "subprocess.Popen[bytes]") -> None:
        deadline = time.monotonic() + 300
        while not list(checkpoints.glob(pattern)) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)

    first = subprocess.Popen(argv, env=ONE_THREAD)
    # in the middle of the second save
    wait_for("step=2/random", first)
    first.kill()
    first.wait()
    second = subprocess.Popen(argv, env=ONE_THREAD)
    wait_for("step=3/complete.json", second)
    second.terminate()
    # it may have been in its last step
    assert second.wait(timeout=300) in (0, 3)
    last = subprocess.run(argv, env=ONE_THREAD, capture_output=True, text=True, timeout=300)
    assert last.returncode == 0, last.stderr[-3000:]
    # what this run had not begun to save before is compared too
    assert largest_difference(metrics(runs.output("llama", "one")), metrics(output)) < 1e-5
