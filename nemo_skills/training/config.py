"""Settings of the training mains: typed, with a line of help for every key.

The names are those of NeMo-Aligner's configs where it has them: commands written for it go on working.
"""

from dataclasses import dataclass
from typing import Any, Literal

from nemo_skills.core.errors import UserError, did_you_mean, require
from nemo_skills.core.hydra import MISSING, opt
from nemo_skills.training.architecture import Architecture
from nemo_skills.training.batch_sizes import check_batch, fitting_batch

_OPTIMISERS = ("adamw", "fused_adam", "distributed_fused_adam")


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """Rows to train or validate on, and how many at a time."""

    file_path: str | None = opt(None, "file of rows (.jsonl), or packed file (.npy)")
    file_names: list[str] | None = opt(None, "several such files, one after the other")
    micro_batch_size: int = opt(1, "rows (packs, when packed) that one process computes at once")
    global_batch_size: int | None = opt(
        None, "rows (packs, when packed) of one step over all processes; null: 32, or the next that fits"
    )
    max_seq_length: int = opt(4096, "longer rows are cut to so many tokens")
    packed_sequence: bool = opt(False, "the files are packed, see prepare_packed_ft_dataset")
    hf_dataset: bool = opt(False, "accepted and ignored: rows are read from disk when they are needed anyway")
    shuffle: bool = opt(True, "another order in every epoch; false keeps the order of the files")

    def __post_init__(self) -> None:
        """Check sizes."""
        for name in ("micro_batch_size", "global_batch_size", "max_seq_length"):
            require(getattr(self, name) is None or getattr(self, name) > 0, f"{name} must be positive")
        require(self.max_seq_length > 1, "max_seq_length must be at least 2")
        require(self.file_path is None or not self.file_names, "give file_path or file_names, not both")

    @property
    def files(self) -> tuple[str, ...]:
        """The files given."""
        return (self.file_path,) if self.file_path is not None else tuple(self.file_names or ())

    def batch_size(self, dp: int) -> int:
        """Rows of one step, with so many data-parallel processes."""
        return self.global_batch_size or fitting_batch(self.micro_batch_size, dp)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Training and validation data."""

    train_ds: DatasetConfig = opt(DatasetConfig, "data to train on")
    validation_ds: DatasetConfig = opt(DatasetConfig, "data to validate on; without files there is none")


@dataclass(frozen=True, kw_only=True)
class SchedConfig:
    """How the learning rate changes."""

    name: Literal["CosineAnnealing", "linear", "constant"] = opt("CosineAnnealing", "shape after the warm-up")
    warmup_steps: int = opt(10, "steps during which the learning rate grows to its full value")
    constant_steps: int = opt(0, "steps at min_lr at the end")
    min_lr: float = opt(0.0, "learning rate at the end")

    def __post_init__(self) -> None:
        """Check signs."""
        for name in ("warmup_steps", "constant_steps", "min_lr"):
            require(getattr(self, name) >= 0, f"model.optim.sched.{name} must be 0 or more")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimiser."""

    name: str = opt("adamw", "AdamW under any of its names: adamw, fused_adam, distributed_fused_adam")
    lr: float = opt(1e-5, "learning rate after the warm-up")
    betas: list[float] = opt([0.9, 0.98], "decay rates of the moments")
    eps: float = opt(1e-8, "added to the denominator")
    weight_decay: float = opt(0.01, "of matrices; biases and norms are not decayed")
    sched: SchedConfig = opt(SchedConfig, "learning rate schedule")

    def __post_init__(self) -> None:
        """Check names and ranges."""
        if self.name not in _OPTIMISERS:
            hint = did_you_mean(self.name, _OPTIMISERS)
            raise UserError(f"model.optim.name={self.name}: expected one of {', '.join(_OPTIMISERS)}.{hint}")
        require(self.lr > 0, "model.optim.lr must be positive")
        in_range = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        require(in_range, "model.optim.betas must be two numbers from 0 to below 1, such as [0.9,0.98]")


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters."""

    adapter_dim: int = opt(32, "rank")
    alpha: int | None = opt(None, "scale is alpha / rank; null takes the rank")
    adapter_dropout: float = opt(0.0, "dropout before the adapters")
    target_modules: list[str] | None = opt(None, "names of linear layers; null is every one but the head")


@dataclass(frozen=True, kw_only=True)
class PeftConfig:
    """Training few weights."""

    peft_scheme: Literal["none", "lora"] = opt("none", "lora trains adapters and leaves the model as it is")
    lora_tuning: LoraConfig = opt(LoraConfig, "of lora")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The model, how it is spread over processes, and its data."""

    restore_from_path: str = opt(MISSING, "Hugging Face folder (or name) of the model to start from")
    from_scratch: bool = opt(
        False, "make new weights, drawn from the seed; restore_from_path gives tokenizer and config only"
    )
    architecture: Architecture | None = opt(
        None, "shape that from_scratch builds; null takes config.json. Else it only tells memory beforehand"
    )
    tensor_model_parallel_size: int = opt(1, "processes that share every matrix")
    context_parallel_size: int = opt(1, "processes that share every sequence")
    pipeline_model_parallel_size: int = opt(1, "only 1: layers are spread by FSDP instead")
    sequence_parallel: bool = opt(False, "accepted and ignored: it changes memory, not results")
    fsdp: bool = opt(
        True, "shard weights and optimiser over the data-parallel processes; false: copies (HSDP)"
    )
    seed: int = opt(1234, "of data order and dropout")
    ffn_dropout: float = opt(0.0, "dropout inside the feed-forward layers")
    attention_dropout: float = opt(0.0, "dropout of attention weights")
    hidden_dropout: float = opt(0.0, "dropout after attention and after feed-forward")
    activations_checkpoint_granularity: Literal["full"] | None = opt(
        None, "full: keep layer inputs only and compute the rest again, which saves memory"
    )
    attn_implementation: str | None = opt(
        None, "null: flash attention or our own; else a name that transformers knows, such as sdpa or eager"
    )
    loss_chunk_size: int = opt(4096, "tokens whose logits exist at the same time; 0: no limit")
    peft: PeftConfig = opt(PeftConfig, "adapters")
    optim: OptimConfig = opt(OptimConfig, "optimiser")
    data: DataConfig = opt(DataConfig, "data")

    def __post_init__(self) -> None:
        """Check sizes and shares."""
        for name in ("tensor_model_parallel_size", "context_parallel_size"):
            require(getattr(self, name) > 0, f"model.{name} must be positive")
        require(
            self.pipeline_model_parallel_size == 1,
            "model.pipeline_model_parallel_size must be 1: FSDP, tensor and context parallelism spread it",
        )
        for name in ("ffn_dropout", "attention_dropout", "hidden_dropout"):
            require(0 <= getattr(self, name) < 1, f"model.{name} must be from 0 to below 1")
        require(self.loss_chunk_size >= 0, "model.loss_chunk_size must be 0 or more")


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How long to train, and what happens on the way."""

    max_epochs: int = opt(2, "passes over the data")
    max_steps: int = opt(-1, "stop after so many steps; -1: after all passes over the data")
    val_check_interval: int = opt(1000, "steps between two validations; there is one at the end too")
    save_interval: int = opt(1000, "steps between two checkpoints; there is one at the end too")
    limit_val_batches: int | float = opt(1.0, "validate on so many global batches, or on that share of them")

    def __post_init__(self) -> None:
        """Check sizes."""
        for name in ("max_epochs", "val_check_interval", "save_interval"):
            require(getattr(self, name) > 0, f"{name} must be positive")
        require(self.max_steps == -1 or self.max_steps > 0, "max_steps must be positive, or -1 for no limit")
        require(self.limit_val_batches >= 0, "limit_val_batches must be 0 or more")


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """Processes and precision."""

    devices: int | None = opt(
        None, "processes of a node, checked against torchrun's; null takes what there is"
    )
    num_nodes: int | None = opt(None, "nodes, checked against torchrun's; null takes what there is")
    precision: Literal["32", "bf16", "bf16-mixed"] | None = opt(
        None, "bf16: compute in bfloat16, keep weights in float32; null: bf16 on GPUs, else 32"
    )
    gradient_clip_val: float = opt(1.0, "largest norm of the gradient; 0: no limit")
    log_every_n_steps: int = opt(1, "steps between two lines of metrics.jsonl")

    def __post_init__(self) -> None:
        """Check signs."""
        require(self.gradient_clip_val >= 0, "trainer.gradient_clip_val must be 0 or more")
        require(self.log_every_n_steps > 0, "trainer.log_every_n_steps must be positive")


@dataclass(frozen=True, kw_only=True)
class SftTrainerConfig(TrainerConfig):
    """Processes, precision and schedule."""

    sft: ScheduleConfig = opt(ScheduleConfig, "schedule")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Which checkpoints are kept. The newest one always is."""

    save_top_k: int = opt(-1, "keep so many with the best monitored value; -1 keeps all")
    save_last_k: int = opt(-1, "keep so many of the newest too; -1: just one when save_top_k is limited")
    keep_resumable: int = opt(2, "only so many of the newest keep the optimiser's state; -1: all")
    monitor: str = opt("val_loss", "metric for save_top_k; loss, where no checkpoint has it")
    mode: Literal["min", "max"] = opt("min", "whether small or large values are better")

    def __post_init__(self) -> None:
        """Something has to remain."""
        for name in ("save_top_k", "save_last_k", "keep_resumable"):
            value = getattr(self, name)
            require(value >= -1, f"exp_manager.checkpoint_callback_params.{name} must be -1 or more")
        require(self.keep_resumable != 0, "checkpoint_callback_params.keep_resumable must not be 0")


@dataclass(frozen=True, kw_only=True)
class WandbConfig:
    """Names in Weights & Biases."""

    project: str = opt("nemo-skills", "project")
    name: str | None = opt(None, "name of the run; null takes that of the experiment")
    group: str | None = opt(None, "group of runs")


@dataclass(frozen=True, kw_only=True)
class ExpManagerConfig:
    """Where results go, and when to stop for the next job of a chain."""

    explicit_log_dir: str = opt(MISSING, "folder for checkpoints, metrics and curves")
    name: str | None = opt(None, "name of the experiment")
    max_time_per_run: str | None = opt(
        None, "DD:HH:MM:SS; after that time save and stop with exit code 3; the next run goes on"
    )
    checkpoint_callback_params: CheckpointConfig = opt(CheckpointConfig, "which checkpoints are kept")
    create_wandb_logger: bool = opt(False, "log to Weights & Biases")
    wandb_logger_kwargs: WandbConfig = opt(WandbConfig, "names there")
    create_tensorboard_logger: bool = opt(False, "log to TensorBoard")

    def __post_init__(self) -> None:
        """Check the time."""
        _ = self.seconds_per_run

    @property
    def seconds_per_run(self) -> float | None:
        """`max_time_per_run` in seconds.

        Raises:
            UserError: it is not a time.
        """
        if self.max_time_per_run is None:
            return None
        parts = self.max_time_per_run.split(":")
        if len(parts) > 4 or not all(part.isdigit() for part in parts):
            raise UserError(
                f"exp_manager.max_time_per_run={self.max_time_per_run}: expected DD:HH:MM:SS, "
                "such as 00:03:50:00."
            )
        scale = (1, 60, 3600, 86400)
        return float(sum(int(part) * unit for part, unit in zip(reversed(parts), scale, strict=False)))


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """What all training mains have in common."""

    model: ModelConfig = opt(ModelConfig, "model and data")
    trainer: TrainerConfig = opt(TrainerConfig, "processes, precision, schedule")
    exp_manager: ExpManagerConfig = opt(ExpManagerConfig, "results")

    def __post_init__(self) -> None:
        """There is nothing to do without data; where the number of processes is known, they can share it."""
        train_ds = self.model.data.train_ds
        require(bool(train_ds.files), "model.data.train_ds.file_path is missing")
        processes = (self.trainer.devices or 0) * (self.trainer.num_nodes or 0)
        shared = self.model.tensor_model_parallel_size * self.model.context_parallel_size
        # what cannot be divided into such groups is told when they are started
        if train_ds.global_batch_size and processes > 0 and processes % shared == 0:
            check_batch(train_ds.global_batch_size, train_ds.micro_batch_size, processes // shared)


@dataclass(frozen=True, kw_only=True)
class SftConfig(TrainingConfig):
    """Fine-tunes a model on prompts and responses. Start it with torchrun, or as one process."""

    trainer: SftTrainerConfig = opt(SftTrainerConfig, "processes, precision, schedule")


def as_dict(config: Any) -> dict[str, Any]:
    """Return a config as nested dictionaries."""
    from dataclasses import asdict

    return asdict(config)
