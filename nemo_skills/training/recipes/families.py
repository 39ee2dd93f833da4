"""Recipes of one model family in several sizes: what the variants have in common.

A variant asks for 1 GPU or whole nodes of 8, as few as its weights need, and for micro-batches as large as
then fit, up to 8 rows: H100s with 80 GB, of which the estimate of `memory` fills at most 85 %. A test checks
every one. Weights, gradients and both moments of AdamW are in float32, 16 bytes for each weight; DPO has 4
more for the model as it was.
"""

from dataclasses import dataclass

from nemo_skills.training.recipes.config import (
    Architecture,
    CheckpointConfig,
    ConfigContainer,
    DistConfig,
    DpoConfig,
    ModelConfig,
    OptimizerConfig,
    PeftConfig,
    SchedulerConfig,
    TrainConfig,
)

SEQ_LENGTH = 4096
_NODE = 8
"""GPUs of a node."""
_WIDE = 4096
"""Wider models are pretrained with half the learning rate."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """On how many H100s, and how many rows each computes at once."""

    gpus: int
    micro_batch_size: int


@dataclass(frozen=True, kw_only=True)
class Size:
    """One model of a family."""

    name: str
    """On the Hugging Face hub."""
    architecture: Architecture
    full: Placement
    """Where all weights learn."""
    dpo: Placement
    lora: Placement


def sft(size: Size) -> ConfigContainer:
    """Return the recipe to fine-tune on prompts and responses."""
    config = _placed(size, size.full)
    config.train.global_batch_size = 64
    config.optimizer.lr = 1e-5
    config.scheduler.lr_warmup_iters = 20
    return config


def pretrain(size: Size) -> ConfigContainer:
    """Return the recipe to train new weights on whole texts: 4 million tokens a step."""
    config = _placed(size, size.full)
    config.model.from_scratch = True
    config.train = TrainConfig(
        global_batch_size=1024,
        micro_batch_size=size.full.micro_batch_size,
        train_iters=100_000,
        train_epochs=1,
    )
    lr = 3e-4 if size.architecture.hidden_size <= _WIDE else 1.5e-4
    config.optimizer = OptimizerConfig(lr=lr, betas=[0.9, 0.95], weight_decay=0.1)
    config.scheduler = SchedulerConfig(lr_warmup_iters=2000, min_lr=lr / 10)
    # of a hundred models nobody wants all
    config.checkpoint = CheckpointConfig(save_top_k=0, save_last_k=5)
    return config


def dpo(size: Size) -> ConfigContainer:
    """Return the recipe to fine-tune on pairs of answers."""
    config = _placed(size, size.dpo)
    config.dpo = DpoConfig(beta=0.1)
    config.train.global_batch_size = 64
    config.train.train_epochs = 1
    config.optimizer.lr = 1e-6
    config.scheduler.lr_warmup_iters = 20
    return config


def lora(size: Size) -> ConfigContainer:
    """Return the recipe to fine-tune adapters."""
    config = _placed(size, size.lora)
    config.peft = PeftConfig(scheme="lora", dim=16, alpha=32)
    config.train.global_batch_size = 64
    config.optimizer.lr = 1e-4
    config.scheduler.lr_warmup_iters = 20
    return config


def _placed(size: Size, placement: Placement) -> ConfigContainer:
    nodes, rest = divmod(placement.gpus, _NODE)
    config = ConfigContainer(
        model=ModelConfig(
            restore_from_path=size.name, architecture=size.architecture, recompute_granularity="full"
        ),
        dist=DistConfig(devices=rest or _NODE, num_nodes=max(nodes, 1)),
        train=TrainConfig(micro_batch_size=placement.micro_batch_size, precision="bf16"),
    ).editable()
    config.data.train.seq_length = config.data.validation.seq_length = SEQ_LENGTH
    return config
