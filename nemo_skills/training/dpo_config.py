"""Settings of the DPO main, beside those that all training mains share. Names are NeMo-Aligner's."""

from dataclasses import dataclass
from typing import Literal

from nemo_skills.core.errors import UserError, require
from nemo_skills.core.hydra import opt
from nemo_skills.training.config import ModelConfig, ScheduleConfig, TrainerConfig, TrainingConfig


@dataclass(frozen=True, kw_only=True)
class DpoLossConfig:
    """The loss of a pair: how much more the model prefers the chosen answer than it did at the start."""

    ref_policy_kl_penalty: float = opt(0.2, "beta; the larger, the closer the model stays to the start")
    preference_loss: Literal["dpo", "ipo"] = opt(
        "dpo", "dpo: -log sigmoid(beta * margin); ipo: (margin - 1 / (2 * beta)) ** 2"
    )
    preference_loss_weight: float = opt(1.0, "weight of that loss")
    preference_average_log_probs: bool = opt(False, "mean over the answer's tokens instead of their sum")
    sft_loss_weight: float = opt(0.0, "weight of the chosen answer's own loss, added to it; 0: none")
    sft_average_log_probs: bool | None = opt(
        None, "the same for the chosen answer's own loss; null takes preference_average_log_probs"
    )

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.ref_policy_kl_penalty <= 0:
            raise UserError("model.dpo.ref_policy_kl_penalty must be positive.")
        weights = (self.preference_loss_weight, self.sft_loss_weight)
        if min(weights) < 0 or not any(weights):
            raise UserError("model.dpo: weights of losses must be 0 or more, and one of them positive.")

    @property
    def averages_sft(self) -> bool:
        """Whether the chosen answer's own loss is a mean over tokens."""
        given = self.sft_average_log_probs
        return self.preference_average_log_probs if given is None else given


@dataclass(frozen=True, kw_only=True)
class DpoModelConfig(ModelConfig):
    """The model, how it is spread over processes, its data and its loss."""

    dpo: DpoLossConfig = opt(DpoLossConfig, "loss")


@dataclass(frozen=True, kw_only=True)
class DpoTrainerConfig(TrainerConfig):
    """Processes, precision and schedule."""

    dpo: ScheduleConfig = opt(ScheduleConfig, "schedule")


@dataclass(frozen=True, kw_only=True)
class DpoConfig(TrainingConfig):
    """Fine-tunes a model on pairs of answers (DPO). Start it with torchrun, or as one process."""

    model: DpoModelConfig = opt(DpoModelConfig, "model, data and loss")
    trainer: DpoTrainerConfig = opt(DpoTrainerConfig, "processes, precision, schedule")

    def __post_init__(self) -> None:
        """Pairs lie in rows."""
        super().__post_init__()
        require(not self.model.from_scratch, "model.from_scratch: DPO starts from a trained model")
        data = self.model.data
        for name, dataset in (("train_ds", data.train_ds), ("validation_ds", data.validation_ds)):
            packed = next((file for file in dataset.files if file.endswith(".npy")), None)
            if packed or dataset.packed_sequence:
                found = packed or f"model.data.{name}.packed_sequence"
                raise UserError(f"{found}: pairs of answers cannot be packed; give .jsonl files.")
