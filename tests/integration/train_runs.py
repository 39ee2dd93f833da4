"""Small models, rows and runs for tests of the training mains."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from nemo_skills.core.hydra import compose
from nemo_skills.training.config import SftConfig

Algorithm = Literal["sft", "dpo"]
GLOBAL_BATCH, MICRO_BATCH = 16, 4
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def write_rows(path: Path, count: int, seed: int = 0) -> Path:
    """Write word problems with answers of very different lengths."""
    dice = random.Random(seed)
    rows = []
    for _ in range(count):
        a, b = dice.randrange(100), dice.randrange(100)
        answer = f"{a}+{b}: The answer is \\boxed{{{a + b}}}." + " And so on." * dice.randrange(8)
        rows.append({"input": f"Ann has {a} apples and gets {b} more. How many?\n", "output": answer})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def build_small(folder: Path, kind: str = "llama", **changes: Any) -> Path:
    """Write a model with few weights, grouped heads and untied embeddings."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from nemo_skills.examples.tiny_model import VOCABULARY, build_tokenizer

    tokenizer = build_tokenizer()
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": False,
        "initializer_range": 0.1,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **changes,
    }
    config = AutoConfig.for_model(kind, **settings)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def sft_args(model: Path, rows: Path, output: Path, **more: Any) -> list[str]:
    """Return arguments of the main; `__` in a name stands for a dot."""
    settings = {
        "model.restore_from_path": model,
        "model.data.train_ds.file_path": rows,
        "model.data.train_ds.global_batch_size": GLOBAL_BATCH,
        "model.data.train_ds.micro_batch_size": MICRO_BATCH,
        "model.optim.lr": 3e-3,
        "model.optim.sched.warmup_steps": 2,
        "exp_manager.explicit_log_dir": output,
        **{name.replace("__", "."): value for name, value in more.items()},
    }
    return [f"++{name}={value}" for name, value in settings.items()]


def main_argv(args: Sequence[str], algorithm: Algorithm = "sft") -> list[str]:
    """Return the command of the main in one process."""
    return [sys.executable, "-m", f"nemo_skills.training.start_{algorithm}", *args]


def run_main(args: Sequence[str], algorithm: Algorithm = "sft") -> "subprocess.CompletedProcess[str]":
    """Run the main to its end."""
    return subprocess.run(
        main_argv(args, algorithm), env=ONE_THREAD, capture_output=True, text=True, timeout=300
    )


def train_here(args: Sequence[str], algorithm: Algorithm = "sft") -> bool:
    """Train in this process."""
    import torch

    from nemo_skills.training.engine.job import train
    from nemo_skills.training.engine.outcome import StopFlag
    from tests.integration.train_driver import composed

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        config, task = composed(list(args), algorithm)
        return train(config, task, StopFlag(config.exp_manager.seconds_per_run))
    finally:
        torch.set_num_threads(threads)


def metrics(output: Path) -> dict[tuple[int, str], float]:
    """Return the figures of a run that must not depend on how it was run."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    names = ("loss", "grad_norm", "lr", "val_loss", "rewards_margin", "val_rewards_margin", "val_accuracy")
    return {(line["step"], name): line[name] for line in lines for name in names if name in line}


def largest_difference(a: Mapping[tuple[int, str], float], b: Mapping[tuple[int, str], float]) -> float:
    """Return the largest relative difference of two runs with the same steps."""
    assert a.keys() == b.keys()
    return max(abs(a[key] - b[key]) / max(abs(a[key]), 1e-12) for key in a)


def compose_sft(args: Sequence[str]) -> SftConfig:
    """Return the main's configuration."""
    return compose(SftConfig, args)


def pack_rows(rows: Path, model: Path, folder: Path, *, size: int, cp: int = 1) -> tuple[Path, int]:
    """Pack rows with the packing main; return what to train on, and the number of packs."""
    import numpy as np

    from nemo_skills.training.packing_config import PackingConfig
    from nemo_skills.training.prepare_packed_ft_dataset import prepare_packed_ft_dataset

    settings = {
        "model.data.train_ds.file_names": f"['{rows}']",
        "model.data.train_ds.max_seq_length": size,
        "model.context_parallel_size": cp,
        "tokenizer_path": model,
        "output_dir": folder,
        "pack_sizes": f"[{size}]",
        "processes": 1,
    }
    prepare_packed_ft_dataset(compose(PackingConfig, [f"++{k}={v}" for k, v in settings.items()]))
    packs = np.load(folder / f"packed_{size}_seed0.input_ids.npy", mmap_mode="r")
    return folder / f"packed_{size}_seed0.npy", len(packs)
