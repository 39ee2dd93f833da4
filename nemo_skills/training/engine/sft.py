"""Supervised fine-tuning: every token of the answers counts the same."""

from dataclasses import replace
from functools import partial
from typing import Any

import torch

from nemo_skills.training.config import SftConfig
from nemo_skills.training.engine import job
from nemo_skills.training.engine.data import Batches, MicroBatch
from nemo_skills.training.engine.job import Place, Task
from nemo_skills.training.engine.loop import Run
from nemo_skills.training.engine.outcome import StopFlag
from nemo_skills.training.engine.parallel import Topology
from nemo_skills.training.engine.samples import one_document
from nemo_skills.training.metrics_log import OnMetrics
from nemo_skills.training.tokenise import check_row


def train_sft(config: SftConfig, stop: StopFlag, on_metrics: OnMetrics | None = None) -> bool:
    """Train, or go on training; tell whether all steps are done.

    Args:
        config: of the training.
        stop: tells when to stop early.
        on_metrics: called in the main process with all that is logged.

    Raises:
        UserError: the configuration, the data or the model cannot be used.
    """
    return job.train(config, replace(sft_task(config), on_metrics=on_metrics), stop)


def build_run(config: SftConfig, topology: Topology) -> Run:
    """Open data and model."""
    return job.build_run(config, sft_task(config), topology)


def sft_task(config: SftConfig) -> Task:
    """Return what is particular to this kind of training."""

    def objective(place: Place) -> Any:
        return partial(next_token_losses, topology=place.topology)

    return Task(
        schedule=config.trainer.sft,
        tokenise_row=one_document,
        check_row=check_row,
        batches=Batches,
        build_objective=objective,
    )


def next_token_losses(
    model: Any, batch: MicroBatch, topology: Topology
) -> tuple[torch.Tensor, dict[str, float]]:
    """Return the sum of the losses of the trained tokens."""
    inputs = batch.inputs(topology.device)
    losses: torch.Tensor = model(**inputs, targets=batch.targets.to(topology.device))
    return losses.sum(), {}
