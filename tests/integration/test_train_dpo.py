"""DPO: what is learned, and that it is what is written by hand, however it is spread, in spite of kills."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from nemo_skills.core.errors import UserError
from tests.integration.preference_runs import plain_dpo, write_graded, write_pairs
from tests.integration.train_runs import (
    ONE_THREAD,
    build_small,
    largest_difference,
    main_argv,
    metrics,
    run_main,
    sft_args,
    train_here,
)

pytestmark = pytest.mark.service("train")

DRIVER = Path(__file__).with_name("train_driver.py")
VALIDATION = "model__data__validation_ds__file_path"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_small(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("rows") / "train.jsonl", 70)


def figures(output: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def test_what_the_pair_processor_writes_is_learned(model: Path, tmp_path: Path) -> None:
    from nemo_skills.training.prepare_data import run as prepare

    data = tmp_path / "dpo.jsonl"
    source = write_graded(tmp_path / "graded.jsonl", 240)
    values = {"input_files": source, "output_path": data, "tokenizer": model, "validation_size": 48}
    prepare(["--config-name=dpo", *(f"++{k}={v}" for k, v in values.items()), "++processes=1"])
    held_out = tmp_path / "dpo-validation.jsonl"
    assert len(data.read_text().splitlines()) == 192 and len(held_out.read_text().splitlines()) == 48

    output = tmp_path / "run"
    more = {VALIDATION: held_out, "trainer__dpo__max_steps": 12, "trainer__dpo__val_check_interval": 6}
    ended = run_main(sft_args(model, data, output, **{**more, "model__optim__lr": 3e-4}), "dpo")
    assert ended.returncode == 0, ended.stderr
    lines = figures(output)
    steps = [line for line in lines if "loss" in line]
    # both models are the same at first
    assert steps[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert steps[0]["rewards_margin"] == pytest.approx(0, abs=1e-5)
    margins = [line["rewards_margin"] for line in steps]
    assert margins[3] < margins[6] < margins[-1]
    assert steps[-1]["loss"] < 0.1
    halfway, end = [line for line in lines if "val_loss" in line]
    assert end["val_accuracy"] > 0.9
    assert 0 < halfway["val_rewards_margin"] < end["val_rewards_margin"]
    assert end["val_rewards_margin"] == pytest.approx(end["val_rewards_chosen"] - end["val_rewards_rejected"])
    assert (output / "checkpoints/step=12/hf/model.safetensors").exists()


@pytest.mark.parametrize("loss", ["dpo", "ipo"])
def test_losses_are_those_written_by_hand(loss: str, model: Path, pairs: Path, tmp_path: Path) -> None:
    more: dict[str, Any] = {
        "model__data__train_ds__shuffle": False,
        "model__optim__lr": 3e-4,
        "model__optim__sched__warmup_steps": 0,
        "model__optim__sched__name": "constant",
        "trainer__dpo__max_steps": 4,
    }
    if loss == "ipo":
        more |= {"model__dpo__preference_loss": "ipo", "model__dpo__ref_policy_kl_penalty": 0.5}
        more |= {"model__dpo__preference_average_log_probs": True, "model__dpo__sft_loss_weight": 0.3}
    assert train_here(sft_args(model, pairs, tmp_path / "run", **more), "dpo")
    found = [(line["loss"], line["rewards_margin"]) for line in figures(tmp_path / "run")]
    expected = plain_dpo(model, pairs, 4, 3e-4, loss)
    for ours, plain in zip(found, expected, strict=True):
        assert ours == pytest.approx(plain, rel=1e-5, abs=1e-5)
    # there is something to compare
    assert abs(expected[3][1]) > 1e-3


def test_spread_over_two_processes(model: Path, pairs: Path, tmp_path: Path) -> None:
    held_out = write_pairs(tmp_path / "held-out.jsonl", 21, seed=1)
    steady = {VALIDATION: held_out, "trainer__dpo__max_steps": 3, "trainer__dpo__val_check_interval": 3}
    both: dict[str, Any] = {"model__dpo__sft_loss_weight": 0.2, "model__dpo__sft_average_log_probs": True}
    # the start is the model without adapters
    lora: dict[str, Any] = {"model__peft__peft_scheme": "lora"}
    cases: dict[str, dict[str, Any]] = {
        "fsdp": {},
        "copies": {"model__fsdp": False},
        "tp": {"model__tensor_model_parallel_size": 2},
        "cp": {"model__context_parallel_size": 2, **both},
        "lora": lora,
    }

    def args(name: str, **more: Any) -> list[str]:
        return sft_args(model, pairs, tmp_path / name, **{**steady, **more})

    todo = [{"algorithm": "dpo", "args": args(name, **more)} for name, more in cases.items()]
    plan = tmp_path / "cases.json"
    plan.write_text(json.dumps(todo))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    argv = [*torchrun, str(DRIVER), str(plan)]
    ended = subprocess.run(argv, env=ONE_THREAD, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr[-5000:]
    assert train_here(args("one"), "dpo")
    assert train_here(args("one-both", **both), "dpo")
    assert train_here(args("one-lora", **lora), "dpo")
    assert metrics(tmp_path / "one-lora")[1, "loss"] == pytest.approx(0.693147, abs=1e-5)
    for name in cases:
        reference = metrics(tmp_path / {"cp": "one-both", "lora": "one-lora"}.get(name, "one"))
        # margins are small differences of large numbers
        assert metrics(tmp_path / name) == pytest.approx(reference, rel=1e-5, abs=2e-6), name
        shares = json.loads((tmp_path / name / "shards.json").read_text())
        # adapters are in every process
        assert set(shares.values()) - {None} == {1.0 if name == "copies" else 0.5}


def test_kills_and_signals(model: Path, pairs: Path, tmp_path: Path) -> None:
    more: dict[str, Any] = {
        "trainer__dpo__max_epochs": 20,
        "trainer__dpo__max_steps": 40,
        "trainer__dpo__save_interval": 6,
        "model__hidden_dropout": 0.1,
    }
    assert train_here(sft_args(model, pairs, tmp_path / "reference", **more), "dpo")
    output = tmp_path / "run"
    args = sft_args(model, pairs, output, **more)
    for how, at, code in ((signal.SIGKILL, 8, -signal.SIGKILL), (signal.SIGTERM, 15, 3)):
        main = subprocess.Popen(main_argv(args, "dpo"), env=ONE_THREAD, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 300
        while steps_done(output) < at and main.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        main.send_signal(how)
        assert main.wait() == code
    assert train_here(args, "dpo")
    assert largest_difference(metrics(tmp_path / "reference"), metrics(output)) < 1e-6
    weights = [
        (run / "checkpoints/step=40/hf/model.safetensors").read_bytes()
        for run in (tmp_path / "reference", output)
    ]
    assert weights[0] == weights[1]


def steps_done(output: Path) -> int:
    log = output / "metrics.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def test_mistakes_in_rows(model: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    good = '{"prompt": "1+1=", "chosen": "2", "rejected": "3"}\n'
    rows.write_text(good * 15 + '{"prompt": "1+1=", "chosen": "2", "reject": "3"}\n')
    with pytest.raises(UserError, match=r"rows.jsonl.*16.*no 'rejected'.*rejected"):
        train_here(sft_args(model, rows, tmp_path / "run", trainer__dpo__max_steps=1), "dpo")
