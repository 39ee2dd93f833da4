"""The example that chains training, conversion and evaluation, on a real Slurm cluster."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_skills.examples import quickstart
from nemo_skills.pipeline import cli
from tests.conftest import REPO, vllm_python
from tests.integration.slurm_jobs import SlurmUser

pytestmark = [pytest.mark.service(name) for name in ("slurm", "train", "vllm")]

EXAMPLE = REPO / "examples" / "train_convert_eval.py"
STEPS = 600
TRAINING = " ".join(
    (
        "++model.data.train_ds.packed_sequence=true",
        "++model.data.train_ds.micro_batch_size=6",
        "++model.data.train_ds.global_batch_size=6",
        "++model.data.train_ds.max_seq_length=512",
        "++model.optim.lr=3e-3",
        "++model.optim.sched.warmup_steps=20",
        "++trainer.sft.max_epochs=100",
        f"++trainer.sft.max_steps={STEPS}",
        "++trainer.sft.save_interval=50",
    )
)


def answers(folder: Path) -> list[str]:
    """Return the answers of an evaluation, in the order of the problems."""
    [file] = (folder / "eval-results" / "arithmetic").glob("output*.jsonl")
    return [json.loads(line)["generation"] for line in file.read_text().splitlines()]


def accuracy(folder: Path) -> float:
    report = json.loads((folder / "eval-results" / "arithmetic" / "metrics.json").read_text())
    return float(report["metrics"]["pass@1"]["symbolic_correct"]["value"])


def test_from_a_nemo_checkpoint_to_scores(slurm_user: SlurmUser, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three jobs train, and the last makes the mean; it is scored as a NeMo checkpoint and converted."""
    user = slurm_user
    user.settings["containers"]["vllm"] = f"venv:{vllm_python().parents[1]}"
    user.settings["default_timeout"] = "00:20:00"
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("NEMO_SKILLS_DATA_DIR", user.path("data"))
    folder = quickstart.Folder(user.workspace)
    quickstart.make(folder, 0)
    quickstart.prepare(folder, 0)
    start = user.path("nemo model")
    words = [f"--input_model={folder.model}", f"--output_model={start}"]
    assert cli.main(["convert", "--convert_from=hf", "--convert_to=nemo", "--model_type=llama", *words]) == 0

    packed = folder.packed / "packed_512_seed0.input_ids.npy"
    example = [sys.executable, str(EXAMPLE), f"--cluster={user.config()}", f"--nemo_model={start}"]
    example += [f"--training_data={packed}", f"--output_dir={user.path('out')}", "--model_type=llama"]
    example += ["--num_training_jobs=3", "--average_steps=550,600", f"--train_args={TRAINING}", "--expname=t"]
    example += ["--server_types=vllm,nemo"]
    example += ["--server_args=--max-model-len=512 --enforce-eager", "--benchmarks=arithmetic"]
    submitted = subprocess.run(
        [*example, f"--extra_datasets={folder.benchmarks}"], capture_output=True, text=True
    )
    assert submitted.returncode == 0, submitted.stderr

    for job in ("t", "t-part2"):
        user.cut_short("t", job)
    assert user.wait("t", timeout_s=700) == {
        "t-from-nemo": "COMPLETED",
        "t": "FAILED",
        "t-part2": "FAILED",
        "t-part3": "COMPLETED",
        "t-average": "COMPLETED",
    }
    assert user.trained_steps() == list(range(1, STEPS + 1))
    assert set(user.wait("t-to-hf", timeout_s=60).values()) == {"COMPLETED"}
    for server_type in ("vllm", "nemo"):
        assert set(user.wait(f"t-eval-{server_type}", timeout_s=300).values()) == {"COMPLETED"}
    by_vllm, by_nemo = (user.workspace / "out" / f"results-{name}" for name in ("vllm", "nemo"))
    assert accuracy(by_vllm) == accuracy(by_nemo) > 90
    assert answers(by_vllm) == answers(by_nemo)
    assert len(answers(by_nemo)) == quickstart.TEST_ROWS
