"""The training loop: steps, validation, checkpoints, and stopping in time."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from nemo_skills.core.errors import UserError
from nemo_skills.core.log import get_logger
from nemo_skills.training.config import OptimConfig, ScheduleConfig, TrainerConfig
from nemo_skills.training.engine.checkpoint import Checkpoints, Progress, Training
from nemo_skills.training.engine.data import Batches, MicroBatch
from nemo_skills.training.engine.lora import share_gradients
from nemo_skills.training.engine.model import autocast, evaluating
from nemo_skills.training.engine.optimiser import build_gradients, clip_gradients, learning_rate
from nemo_skills.training.engine.outcome import StopFlag
from nemo_skills.training.engine.parallel import Topology
from nemo_skills.training.engine.profiling import Profiler
from nemo_skills.training.engine.speed import Speed
from nemo_skills.training.metrics_log import MetricsLog

LOG = get_logger(__name__)

Objective = Callable[[Any, Any], tuple[torch.Tensor, Mapping[str, float]]]
"""Takes the model and a micro-batch; returns the sum of its losses, and sums of other figures, if any.

The `weight` of the batch says over how many (tokens, pairs): logged are sums over all processes by weight.
"""


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything a training loop needs."""

    topology: Topology
    training: Training
    objective: Objective
    batches: Batches
    validation: Batches | None
    schedule: ScheduleConfig
    trainer: TrainerConfig
    optim: OptimConfig
    bf16: bool

    @property
    def _samples(self) -> int:
        return self.schedule.max_epochs * self.batches.rows

    @property
    def left_out(self) -> int:
        """Samples at the end of the last epoch that fill no step, and are not trained."""
        left = self._samples - self.total_steps * self.batches.global_size
        return left if 0 < left < self.batches.global_size else 0

    @property
    def total_steps(self) -> int:
        """All steps of the run."""
        by_epochs = max(1, self._samples // self.batches.global_size)
        return by_epochs if self.schedule.max_steps == -1 else min(by_epochs, self.schedule.max_steps)


@dataclass
class Trainer:
    """Goes through the steps that are left."""

    run: Run
    checkpoints: Checkpoints
    log: MetricsLog | None
    """Of the main process."""
    stop: StopFlag
    _last: dict[str, float] = field(default_factory=dict)

    def train(self, progress: Progress) -> Progress:
        """Train from `progress` on; return how far it came, which is saved."""
        run, size = self.run, self.run.batches.global_size
        left = run.total_steps - progress.step
        steps = run.batches.steps(progress.consumed_samples, progress.consumed_samples + left * size)
        saved = progress.step
        profiler = Profiler.of_environment(run.topology.rank, self.checkpoints.folder.parent)
        # from before the wait for the data of a step to its end
        speed = Speed.start()
        for micro_batches in steps:
            weight, stopping = run.topology.sum(
                [sum(batch.weight for batch in micro_batches), float(bool(self.stop.reason))]
            )
            if stopping:
                break
            with profiler.step(progress.step + 1):
                self._step(progress.step, micro_batches, weight, speed)
            progress = Progress(step=progress.step + 1, consumed_samples=progress.consumed_samples + size)
            last = progress.step == run.total_steps
            if run.validation and (last or progress.step % run.schedule.val_check_interval == 0):
                self._validate(progress.step, run.validation)
            if last or progress.step % run.schedule.save_interval == 0:
                self._save(progress)
                saved = progress.step
            speed = Speed.start()
        profiler.stop()
        if saved != progress.step:
            self._save(progress)
        return progress

    def _step(self, step: int, micro_batches: Sequence[MicroBatch], weight: float, speed: Speed) -> None:
        run = self.run
        sums = _Sums()
        # FSDP takes the mean over processes, where we want the sum
        scale = run.topology.data_size / max(weight, 1.0)
        gradients = build_gradients(run.training.model)
        for batch in micro_batches:
            with autocast(run.topology, bf16=run.bf16):
                loss, figures = run.objective(run.training.model, batch)
            (loss * scale).backward()
            sums.add({"loss": loss.detach(), **figures, "tokens": batch.tokens})
            gradients.collect(more=batch is not micro_batches[-1])
        share_gradients(run.training.model.parameters(), run.topology)
        rate = learning_rate(step, run.total_steps, run.optim)
        for group in run.training.optimiser.param_groups:
            group["lr"] = rate
        norm = clip_gradients(run.training.model.parameters(), run.trainer.gradient_clip_val)
        sums.add({"broken": float(not math.isfinite(norm))})
        totals = sums.over_all(run.topology)
        tokens, broken = totals.pop("tokens"), totals.pop("broken")
        values = {name: value / max(weight, 1.0) for name, value in totals.items()}
        values |= {"grad_norm": norm, "lr": rate}
        if broken or not math.isfinite(values["loss"]):
            raise _not_finite(step + 1, values)
        run.training.optimiser.step()
        run.training.optimiser.zero_grad()
        self._report(step + 1, {**values, **speed.figures(tokens, run.training.model, run.topology)})

    def _report(self, step: int, values: Mapping[str, float]) -> None:
        # what was found in an earlier step says nothing about a checkpoint of this one
        self._last = dict(values)
        consumed = step * self.run.batches.global_size
        due = step % self.run.trainer.log_every_n_steps == 0 or step == self.run.total_steps
        if self.log and due:
            self.log.log(
                step, {**values, "epoch": consumed / self.run.batches.rows, "consumed_samples": consumed}
            )

    def _validate(self, step: int, batches: Batches) -> None:
        sums = _Sums()
        with evaluating(self.run.training.model):
            for start in range(0, self._validation_rows(batches), batches.global_size):
                count = min(batches.global_size, batches.rows - start)
                for batch in batches.step(start, count):
                    with autocast(self.run.topology, bf16=self.run.bf16):
                        loss, figures = self.run.objective(self.run.training.model, batch)
                    sums.add({"loss": loss, **figures, "weight": batch.weight})
        totals = sums.over_all(self.run.topology)
        weight = max(totals.pop("weight", 0.0), 1.0)
        values = {f"val_{name}": value / weight for name, value in totals.items()}
        self._last.update(values)
        if self.log and values:
            self.log.log(step, values)

    def _validation_rows(self, batches: Batches) -> int:
        limit = self.run.schedule.limit_val_batches
        steps = math.ceil(batches.rows / batches.global_size)
        steps = min(steps, limit if isinstance(limit, int) else math.ceil(steps * limit))
        return min(batches.rows, steps * batches.global_size)

    def _save(self, progress: Progress) -> None:
        begun = time.monotonic()
        kept = {name: value for name, value in self._last.items() if math.isfinite(value)}
        path = self.checkpoints.save(
            self.run.training,
            Progress(step=progress.step, consumed_samples=progress.consumed_samples, metrics=kept),
        )
        LOG.info("Saved %s in %.1f s", path, time.monotonic() - begun)


def _not_finite(step: int, values: Mapping[str, float]) -> UserError:
    """Say that training has broken down, while the weights are still those of the step before."""
    return UserError(
        f"Step {step}: the loss is {values['loss']:.6g}, the gradients' norm {values['grad_norm']:.6g}. "
        "This would spoil the weights: nothing of the step was saved, and a rerun goes on from the last "
        "checkpoint. A smaller model.optim.lr or a larger model.optim.sched.warmup_steps may help."
    )


class _Sums:
    """Adds figures up, first of this process, then of all."""

    def __init__(self) -> None:
        self._sums: dict[str, Any] = {}

    def add(self, figures: Mapping[str, Any]) -> None:
        """Add the figures of a micro-batch, numbers or tensors; all have the same names."""
        for name, value in figures.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def over_all(self, topology: Topology) -> dict[str, float]:
        """Return the sums over all processes."""
        totals = topology.sum([float(value) for value in self._sums.values()])
        return dict(zip(self._sums, totals, strict=True))
