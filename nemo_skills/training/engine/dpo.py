"""Direct preference optimisation: the model as it was at the start stays beside the one that learns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.nn.functional import logsigmoid

from nemo_skills.training.config import PeftConfig
from nemo_skills.training.dpo_config import DpoConfig, DpoLossConfig, DpoModelConfig
from nemo_skills.training.engine import job
from nemo_skills.training.engine.data import Batches, MicroBatch
from nemo_skills.training.engine.job import Place, Task
from nemo_skills.training.engine.loop import Objective
from nemo_skills.training.engine.loss import IGNORED
from nemo_skills.training.engine.model import build_model, evaluating
from nemo_skills.training.engine.outcome import StopFlag
from nemo_skills.training.engine.parallel import Topology
from nemo_skills.training.metrics_log import OnMetrics
from nemo_skills.training.tokenise_pairs import check_pair, tokenise_pair


def train_dpo(config: DpoConfig, stop: StopFlag, on_metrics: OnMetrics | None = None) -> bool:
    """Train, or go on training; tell whether all steps are done.

    Args:
        config: of the training.
        stop: tells when to stop early.
        on_metrics: called in the main process with all that is logged.

    Raises:
        UserError: the configuration, the data or the model cannot be used.
    """
    return job.train(config, replace(dpo_task(config), on_metrics=on_metrics), stop)


def dpo_task(config: DpoConfig) -> Task:
    """Return what is particular to this kind of training."""
    return Task(
        schedule=config.trainer.dpo,
        tokenise_row=tokenise_pair,
        check_row=check_pair,
        batches=PairBatches,
        build_objective=partial(build_objective, config.model),
    )


@dataclass(frozen=True, kw_only=True)
class PairBatch(MicroBatch):
    """Documents by turns chosen and rejected."""

    pairs: int
    processes: int
    """How many of them compute this batch together, each with a part of the tokens."""

    @property
    def weight(self) -> float:
        """How many pairs: the mean loss of a step is over these."""
        return self.pairs / self.processes


class PairBatches(Batches):
    """Batches whose samples are pairs."""

    def micro_batch(self, indices: Sequence[int]) -> PairBatch:
        """Return a batch of some pairs, perhaps of none."""
        batch = super().micro_batch(indices)
        return PairBatch(**vars(batch), pairs=len(indices), processes=self._topology.cp)


class LogProbs(NamedTuple):
    """Of answers, summed over tokens: log-probabilities, and how many tokens there are."""

    sums: torch.Tensor
    counts: torch.Tensor

    def per_answer(self, *, mean: bool) -> torch.Tensor:
        """Return one figure for each answer; one without tokens has 0."""
        return self.sums / self.counts.clamp(min=1) if mean else self.sums


def build_objective(config: DpoModelConfig, place: Place) -> Objective:
    """Load the frozen model; return what computes the losses of pairs."""
    # adapters change nothing before they are trained
    start = build_model(place.source, replace(config, peft=PeftConfig()), place.topology, bf16=place.bf16)
    start.requires_grad_(False)

    def objective(model: Any, batch: PairBatch) -> tuple[torch.Tensor, Mapping[str, Any]]:
        with evaluating(start):
            before = log_probs(start, batch, place.topology)
        loss, figures = pair_losses(log_probs(model, batch, place.topology), before, config.dpo)
        # processes that share sequences have the same pairs
        return loss.sum() / batch.processes, {
            name: values.detach().sum() / batch.processes for name, values in figures.items()
        }

    return objective


def log_probs(model: Any, batch: PairBatch, topology: Topology) -> LogProbs:
    """Return the log-probabilities of all answers of a batch, chosen and rejected by turns."""
    targets = batch.targets.to(topology.device)
    losses: torch.Tensor = model(**batch.inputs(topology.device), targets=targets)
    segments = torch.tensor([(s.document, s.queries) for s in batch.layout.segments], device=targets.device)
    documents = segments[:, 0].repeat_interleave(segments[:, 1])
    trained = targets != IGNORED
    # where no token is trained there is one loss all the same, which is 0
    of = documents[trained] if trained.any() else documents[:1]
    sums = losses.new_zeros(len(batch.layout.lengths))
    found = torch.stack((sums.index_add(0, of, -losses), sums.index_add(0, documents, trained.to(sums))))
    if topology.cp > 1:
        from torch.distributed._functional_collectives import all_gather_tensor_autograd

        found = all_gather_tensor_autograd(found[None], gather_dim=0, group=topology.cp_group).sum(0)
    # behind the answers there may be padding
    return LogProbs(*found[:, : 2 * batch.pairs])


def pair_losses(
    now: LogProbs, before: LogProbs, config: DpoLossConfig
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the loss of every pair, and figures of every pair.

    Args:
        now: chosen and rejected answers by turns, under the model that learns.
        before: the same under the model at the start.
        config: which loss.
    """
    mean, beta = config.preference_average_log_probs, config.ref_policy_kl_penalty
    gains = now.per_answer(mean=mean) - before.per_answer(mean=mean)
    chosen, rejected = gains[0::2], gains[1::2]
    margin = chosen - rejected
    if config.preference_loss == "ipo":
        preference = (margin - 1 / (2 * beta)).square()
    else:
        preference = -logsigmoid(beta * margin)
    figures = {
        "rewards_chosen": beta * chosen,
        "rewards_rejected": beta * rejected,
        "rewards_margin": beta * margin,
        "accuracy": (margin > 0).float(),
    }
    if not config.sft_loss_weight:
        return config.preference_loss_weight * preference, figures
    sft = -now.per_answer(mean=config.averages_sft)[0::2]
    figures |= {"preference_loss": preference, "sft_loss": sft}
    return config.preference_loss_weight * preference + config.sft_loss_weight * sft, figures
