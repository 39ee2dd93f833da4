"""Puts the parts of a training together, whatever its loss."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from nemo_skills.core.errors import UserError
from nemo_skills.core.jsonl import disk_errors, open_locked
from nemo_skills.core.log import get_logger
from nemo_skills.training.batch_sizes import check_batch
from nemo_skills.training.config import DatasetConfig, ScheduleConfig, TrainingConfig, as_dict
from nemo_skills.training.engine import parallel
from nemo_skills.training.engine.checkpoint import COMPLETE_FILE, Checkpoints, Training
from nemo_skills.training.engine.data import Batches
from nemo_skills.training.engine.fresh import fresh_model
from nemo_skills.training.engine.loop import Objective, Run, Trainer
from nemo_skills.training.engine.model import build_model, find_model
from nemo_skills.training.engine.optimiser import build_optimiser
from nemo_skills.training.engine.outcome import Outcome, StopFlag, forget_outcome, write_outcome
from nemo_skills.training.engine.parallel import Topology
from nemo_skills.training.engine.samples import CheckRow, RowSamples, TokeniseRow, open_samples
from nemo_skills.training.engine.settings import check_settings, run_settings
from nemo_skills.training.metrics_log import LogOptions, MetricsLog, OnMetrics, WandbOptions
from nemo_skills.training.tokenise import load_tokenizer

LOG = get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where and how models are computed."""

    source: Path
    """Folder of the original model."""
    topology: Topology
    bf16: bool


@dataclass(frozen=True, kw_only=True)
class Task:
    """What tells one kind of training from another."""

    schedule: ScheduleConfig
    tokenise_row: TokeniseRow
    check_row: CheckRow
    batches: type[Batches]
    build_objective: Callable[[Place], Objective]
    on_metrics: OnMetrics | None = None
    """Called in the main process with all that is logged."""


def train(config: TrainingConfig, task: Task, stop: StopFlag) -> bool:
    """Train, or go on training; tell whether all steps are done.

    Raises:
        UserError: the configuration, the data or the model cannot be used.
    """
    topology = parallel.start(config.model, config.trainer)
    if not topology.is_main:
        logging.getLogger().setLevel(logging.WARNING)
    with _claimed(config, topology):
        run = build_run(config, task, topology)
        finished = go_on(run, config, stop, task.on_metrics)
    parallel.stop()
    return finished


@contextmanager
def _claimed(config: TrainingConfig, topology: Topology) -> Iterator[None]:
    """Keep other runs out of a folder, and this one out of the folder of a run with other settings.

    Raises:
        UserError: in every process.
    """
    folder = Path(config.exp_manager.explicit_log_dir)
    with ExitStack() as stack:
        problem = None
        if topology.is_main:
            try:
                settings = run_settings(config)
                with disk_errors(folder):
                    folder.mkdir(parents=True, exist_ok=True)
                    stack.callback(os.close, open_locked(folder / "lock"))
                for file in sorted(folder.glob(f"checkpoints/step=*/{COMPLETE_FILE}")):
                    check_settings(file, settings)
            except UserError as error:
                problem = error
        if problem := topology.from_main(problem):
            raise problem
        yield


def build_run(config: TrainingConfig, task: Task, topology: Topology) -> Run:
    """Open data and model."""
    model_config = config.model
    fresh = model_config.from_scratch
    source = find_model(model_config.restore_from_path, topology, weights=not fresh)
    if fresh:
        folder = Path(config.exp_manager.explicit_log_dir) / "new-model"
        source = fresh_model(source, model_config, folder, topology)
    tokenizer = load_tokenizer(str(source))

    def opened(dataset: DatasetConfig, name: str) -> Batches:
        samples = open_samples(dataset, tokenizer, task.tokenise_row, f"model.data.{name}")
        if topology.is_main and isinstance(samples, RowSamples):
            samples.check(task.check_row)
        return task.batches(samples, dataset, topology, model_config.seed)

    data = model_config.data
    # validation may end with a smaller batch, and so need not divide
    check_batch(data.train_ds.batch_size(topology.dp), data.train_ds.micro_batch_size, topology.dp)
    batches = opened(data.train_ds, "train_ds")
    validation = opened(data.validation_ds, "validation_ds") if data.validation_ds.files else None
    bf16 = _computes_in_bf16(config, topology)
    model = build_model(source, model_config, topology, bf16=bf16)
    training = Training(
        model=model,
        optimiser=build_optimiser(model, model_config.optim),
        source=source,
        export_dtype=torch.bfloat16 if bf16 else torch.float32,
    )
    run = Run(
        topology=topology,
        training=training,
        objective=task.build_objective(Place(source=source, topology=topology, bf16=bf16)),
        batches=batches,
        validation=validation,
        schedule=task.schedule,
        trainer=config.trainer,
        optim=model_config.optim,
        bf16=bf16,
    )
    LOG.info(
        "%s weights, %s rows or packs, %s steps of %s; processes: %s data x %s context x %s tensor parallel",
        f"{sum(p.numel() for p in model.parameters()):,}", f"{batches.rows:,}", run.total_steps,
        batches.global_size, topology.dp, topology.cp, topology.tp,
    )  # fmt: skip
    if run.left_out:
        LOG.info("The last %s rows or packs of the last epoch fill no step and are left out", run.left_out)
    return run


def go_on(run: Run, config: TrainingConfig, stop: StopFlag, on_metrics: OnMetrics | None = None) -> bool:
    """Train from the last checkpoint on; tell whether all steps are done."""
    folder = Path(config.exp_manager.explicit_log_dir)
    checkpoints = Checkpoints(
        folder / "checkpoints",
        config.exp_manager.checkpoint_callback_params,
        run.topology,
        run_settings(config),
    )
    with disk_errors(folder):
        checkpoints.folder.mkdir(parents=True, exist_ok=True)
    # dropout differs between processes that see different tokens, and only between these
    torch.manual_seed(config.model.seed + run.topology.data_rank)
    progress = checkpoints.restore(run.training)
    if progress.step:
        LOG.info("Going on after step %s of %s", progress.step, run.total_steps)
    log = None
    if run.topology.is_main:
        forget_outcome(folder)
        options = replace(_log_options(config, run, progress.step), on_metrics=on_metrics)
        log = MetricsLog.open(folder, options)
    try:
        progress = Trainer(run, checkpoints, log, stop).train(progress)
    finally:
        if log:
            log.close()
    finished: bool = progress.step >= run.total_steps
    if run.topology.is_main:
        outcome = Outcome(
            step=progress.step,
            reason="finished" if finished else stop.reason or "another process was told to stop",
            max_epochs=run.schedule.max_epochs,
            max_steps=run.schedule.max_steps,
            settings=run_settings(config),
        )
        write_outcome(folder, outcome, finished=finished)
        LOG.info("Step %s of %s: %s", progress.step, run.total_steps, outcome.reason)
    return finished


def _computes_in_bf16(config: TrainingConfig, topology: Topology) -> bool:
    precision = config.trainer.precision
    if precision is None:
        return bool(topology.device.type == "cuda")
    return precision != "32"


def _log_options(config: TrainingConfig, run: Run, step: int) -> LogOptions:
    manager = config.exp_manager
    names = manager.wandb_logger_kwargs
    wandb = WandbOptions(project=names.project, name=names.name or manager.name, group=names.group)
    return LogOptions(
        total_steps=run.total_steps,
        resume_step=step,
        tensorboard=manager.create_tensorboard_logger,
        wandb=wandb if manager.create_wandb_logger else None,
        config=as_dict(config),
    )
