"""TRL's trainer on the same rows, in the same order and with the same settings as ours."""

import json
import time
from pathlib import Path
from typing import Any


def trl_trainer(model: Path, rows: Path, output: Path, **more: Any) -> Any:
    """Return a trainer that tokenises the rows itself and notes the loss of each step in `.seen`."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    class Noting(SFTTrainer):  # type: ignore[misc]
        seen: list[float]

        def compute_loss(self, *args: Any, **options: Any) -> Any:
            loss = super().compute_loss(*args, **options)
            self.seen.append((loss[0] if isinstance(loss, tuple) else loss).item())
            return loss

        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    found = [json.loads(line) for line in rows.read_text().splitlines()]
    dataset = Dataset.from_list([{"prompt": row["input"], "completion": row["output"]} for row in found])
    settings: dict[str, Any] = {
        "output_dir": str(output),
        "use_cpu": True,
        "bf16": False,
        "learning_rate": 3e-3,
        "lr_scheduler_type": "cosine",
        "adam_beta1": 0.9,
        "adam_beta2": 0.98,
        "weight_decay": 0.01,
        "max_grad_norm": 1.0,
        "max_length": None,
        "activation_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1000,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        **more,
    }
    trainer = Noting(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        args=SFTConfig(**settings),
        train_dataset=dataset,
        processing_class=AutoTokenizer.from_pretrained(model),
    )
    trainer.seen = []
    return trainer


def timed(trainer: Any) -> float:
    """Train, and return the seconds that it took."""
    begun = time.perf_counter()
    trainer.train()
    return time.perf_counter() - begun
