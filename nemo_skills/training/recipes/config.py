"""The whole configuration of a training in one typed container, under the field's usual names.

Every setting here is one of `start_sft` and `start_dpo` under another name, see `settings`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from nemo_skills.training.recipes.settings import (
    Settings,
    check_types,
    group,
    of,
    optional_group,
    python_only,
)

__all__ = [
    "Architecture",
    "CheckpointConfig",
    "ConfigContainer",
    "DataConfig",
    "DatasetConfig",
    "DistConfig",
    "DpoConfig",
    "LoggerConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PeftConfig",
    "SchedulerConfig",
    "TrainConfig",
    "ValidationConfig",
]


@dataclass(kw_only=True)
class Architecture(Settings):
    """Shape of the model."""

    model_type: str = of("model.architecture.model_type")
    vocab_size: int = of("model.architecture.vocab_size")
    hidden_size: int = of("model.architecture.hidden_size")
    intermediate_size: int = of("model.architecture.intermediate_size")
    num_hidden_layers: int = of("model.architecture.num_hidden_layers")
    num_attention_heads: int = of("model.architecture.num_attention_heads")
    num_key_value_heads: int = of("model.architecture.num_key_value_heads")
    head_dim: int | None = of("model.architecture.head_dim")
    tie_word_embeddings: bool = of("model.architecture.tie_word_embeddings")
    max_position_embeddings: int = of("model.architecture.max_position_embeddings")
    rope_theta: float = of("model.architecture.rope_theta")
    rope_scaling: dict[str, Any] | None = of("model.architecture.rope_scaling")
    rms_norm_eps: float = of("model.architecture.rms_norm_eps")
    initializer_range: float = of("model.architecture.initializer_range")


@dataclass(kw_only=True)
class ModelConfig(Settings):
    """The model, and how one copy of it is computed."""

    restore_from_path: str = of("model.restore_from_path")
    from_scratch: bool = of("model.from_scratch")
    architecture: Architecture | None = optional_group("shape of the model")
    tensor_model_parallel_size: int = of("model.tensor_model_parallel_size")
    context_parallel_size: int = of("model.context_parallel_size")
    pipeline_model_parallel_size: int = of("model.pipeline_model_parallel_size")
    sequence_parallel: bool = of("model.sequence_parallel")
    recompute_granularity: Literal["full"] | None = of("model.activations_checkpoint_granularity")
    attn_implementation: str | None = of("model.attn_implementation")
    loss_chunk_size: int = of("model.loss_chunk_size")
    ffn_dropout: float = of("model.ffn_dropout")
    attention_dropout: float = of("model.attention_dropout")
    hidden_dropout: float = of("model.hidden_dropout")


@dataclass(kw_only=True)
class TrainConfig(Settings):
    """How long to train, and in what batches."""

    train_iters: int = of("trainer.{algo}.max_steps")
    train_epochs: int = of("trainer.{algo}.max_epochs")
    global_batch_size: int | None = of("model.data.train_ds.global_batch_size")
    micro_batch_size: int = of("model.data.train_ds.micro_batch_size")
    seed: int = of("model.seed")
    precision: Literal["32", "bf16", "bf16-mixed"] | None = of("trainer.precision")
    max_time_per_run: str | None = of("exp_manager.max_time_per_run")


@dataclass(kw_only=True)
class ValidationConfig(Settings):
    """When and how to validate."""

    eval_interval: int = of("trainer.{algo}.val_check_interval")
    eval_iters: int | float = of("trainer.{algo}.limit_val_batches")
    global_batch_size: int | None = of("model.data.validation_ds.global_batch_size")
    micro_batch_size: int = of("model.data.validation_ds.micro_batch_size")


@dataclass(kw_only=True)
class DatasetConfig(Settings):
    """Rows on disk."""

    file_path: str | None = of("model.data.{dataset}.file_path")
    file_names: list[str] | None = of("model.data.{dataset}.file_names")
    seq_length: int = of("model.data.{dataset}.max_seq_length")
    packed_sequence: bool = of("model.data.{dataset}.packed_sequence")
    shuffle: bool = of("model.data.{dataset}.shuffle")
    hf_dataset: bool = of("model.data.{dataset}.hf_dataset")


@dataclass(kw_only=True)
class DataConfig(Settings):
    """Training and validation data."""

    train: DatasetConfig = group(DatasetConfig, "data to train on", dataset="train_ds")
    validation: DatasetConfig = group(DatasetConfig, "data to validate on", dataset="validation_ds")


@dataclass(kw_only=True)
class OptimizerConfig(Settings):
    """The optimiser."""

    name: str = of("model.optim.name")
    lr: float = of("model.optim.lr")
    betas: list[float] = of("model.optim.betas")
    eps: float = of("model.optim.eps")
    weight_decay: float = of("model.optim.weight_decay")
    clip_grad: float = of("trainer.gradient_clip_val")


@dataclass(kw_only=True)
class SchedulerConfig(Settings):
    """How the learning rate changes."""

    lr_decay_style: Literal["CosineAnnealing", "linear", "constant"] = of("model.optim.sched.name")
    lr_warmup_iters: int = of("model.optim.sched.warmup_steps")
    lr_constant_iters: int = of("model.optim.sched.constant_steps")
    min_lr: float = of("model.optim.sched.min_lr")


@dataclass(kw_only=True)
class CheckpointConfig(Settings):
    """Which checkpoints are kept."""

    save_interval: int = of("trainer.{algo}.save_interval")
    save_top_k: int = of("exp_manager.checkpoint_callback_params.save_top_k")
    save_last_k: int = of("exp_manager.checkpoint_callback_params.save_last_k")
    keep_resumable: int = of("exp_manager.checkpoint_callback_params.keep_resumable")
    monitor: str = of("exp_manager.checkpoint_callback_params.monitor")
    mode: Literal["min", "max"] = of("exp_manager.checkpoint_callback_params.mode")


@dataclass(kw_only=True)
class LoggerConfig(Settings):
    """Where results and figures go."""

    log_dir: str = of("exp_manager.explicit_log_dir")
    name: str | None = of("exp_manager.name")
    log_interval: int = of("trainer.log_every_n_steps")
    wandb: bool = of("exp_manager.create_wandb_logger")
    wandb_project: str = of("exp_manager.wandb_logger_kwargs.project")
    wandb_name: str | None = of("exp_manager.wandb_logger_kwargs.name")
    wandb_group: str | None = of("exp_manager.wandb_logger_kwargs.group")
    tensorboard: bool = of("exp_manager.create_tensorboard_logger")
    on_metrics: Callable[[int, Mapping[str, float]], None] | None = python_only(
        "function of Python that gets each step and its figures, in the main process"
    )


@dataclass(kw_only=True)
class DistConfig(Settings):
    """Processes, and what they share."""

    devices: int | None = of("trainer.devices")
    num_nodes: int | None = of("trainer.num_nodes")
    fsdp: bool = of("model.fsdp")


@dataclass(kw_only=True)
class PeftConfig(Settings):
    """Training few weights."""

    scheme: Literal["none", "lora"] = of("model.peft.peft_scheme")
    dim: int = of("model.peft.lora_tuning.adapter_dim")
    alpha: int | None = of("model.peft.lora_tuning.alpha")
    dropout: float = of("model.peft.lora_tuning.adapter_dropout")
    target_modules: list[str] | None = of("model.peft.lora_tuning.target_modules")


@dataclass(kw_only=True)
class DpoConfig(Settings):
    """The loss of a pair of answers."""

    beta: float = of("model.dpo.ref_policy_kl_penalty")
    preference_loss: Literal["dpo", "ipo"] = of("model.dpo.preference_loss")
    preference_loss_weight: float = of("model.dpo.preference_loss_weight")
    preference_average_log_probs: bool = of("model.dpo.preference_average_log_probs")
    sft_loss_weight: float = of("model.dpo.sft_loss_weight")
    sft_average_log_probs: bool | None = of("model.dpo.sft_average_log_probs")


@dataclass(kw_only=True)
class ConfigContainer(Settings):
    """A training, ready to be started by `start_sft`, or by `start_dpo` where `dpo` is given."""

    model: ModelConfig = group(ModelConfig, "model")
    train: TrainConfig = group(TrainConfig, "how long, and in what batches")
    validation: ValidationConfig = group(ValidationConfig, "when and how to validate")
    data: DataConfig = group(DataConfig, "data")
    optimizer: OptimizerConfig = group(OptimizerConfig, "optimiser")
    scheduler: SchedulerConfig = group(SchedulerConfig, "learning rate schedule")
    checkpoint: CheckpointConfig = group(CheckpointConfig, "which checkpoints are kept")
    logger: LoggerConfig = group(LoggerConfig, "where results and figures go")
    dist: DistConfig = group(DistConfig, "processes")
    peft: PeftConfig = group(PeftConfig, "adapters")
    dpo: DpoConfig | None = optional_group("loss of pairs of answers; null: supervised training")

    @property
    def algo(self) -> Literal["sft", "dpo"]:
        """Which main trains it."""
        return "sft" if self.dpo is None else "dpo"

    def main_overrides(self) -> list[str]:
        """Return the settings as arguments of the main; those that are its defaults are left out."""
        from nemo_skills.training.recipes.main_keys import main_overrides

        return main_overrides(self)

    @classmethod
    def from_main_overrides(cls, overrides: Sequence[str]) -> "ConfigContainer":
        """Return what `main_overrides` has made arguments of, to be edited.

        Raises:
            UserError: something is no argument of the main.
        """
        from nemo_skills.training.recipes.main_keys import from_main_overrides

        return from_main_overrides(overrides)

    def main_config(self) -> Any:
        """Return the config of the main, an `SftConfig` or a `DpoConfig`.

        Raises:
            UserError: something is missing or does not go together, in the names of this container.
        """
        from nemo_skills.training.recipes.main_keys import main_config

        return main_config(self)

    def check(self) -> None:
        """Check everything, as the main would.

        Raises:
            UserError: something is missing or does not go together.
        """
        self.main_config()


check_types(ConfigContainer)
