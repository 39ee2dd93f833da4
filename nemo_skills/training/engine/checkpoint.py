"""Checkpoints that appear complete or not at all, and going on from the newest good one."""

import io
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from nemo_skills.core.errors import UserError
from nemo_skills.core.jsonl import disk_errors, write_file
from nemo_skills.core.log import get_logger
from nemo_skills.training.config import CheckpointConfig
from nemo_skills.training.engine.export import export_model
from nemo_skills.training.engine.parallel import Topology
from nemo_skills.training.engine.settings import Settings

LOG = get_logger(__name__)

COMPLETE_FILE, MODEL_FOLDER, STATE_FOLDER, RANDOM_FOLDER = "complete.json", "hf", "dcp", "random"
_STEP = re.compile(r"step=(\d+)")


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is."""

    step: int = 0
    consumed_samples: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Training:
    """What a checkpoint holds besides the progress."""

    model: Any
    optimiser: torch.optim.Optimizer
    source: Path
    """Folder of the original model: its config and tokenizer are copied."""
    export_dtype: torch.dtype


class Checkpoints:
    """The checkpoints of a run, `step=<N>` in one folder."""

    def __init__(
        self, folder: Path, config: CheckpointConfig, topology: Topology, settings: Settings
    ) -> None:
        self.folder = folder
        self._config = config
        self._topology = topology
        self._settings = settings

    def complete(self) -> dict[int, Progress]:
        """Return the progress of every complete checkpoint by step."""
        found = {}
        for path in self.folder.glob("step=*"):
            if (match := _STEP.fullmatch(path.name)) and (progress := _read(path)):
                found[int(match[1])] = progress
        return dict(sorted(found.items()))

    def save(self, training: Training, progress: Progress) -> Path:
        """Write a checkpoint, then remove those that need not be kept."""
        path = self.folder / f"step={progress.step}"
        with _writing(path):
            if self._topology.is_main:
                shutil.rmtree(path, ignore_errors=True)
                (path / RANDOM_FOLDER).mkdir(parents=True)
            self._topology.barrier()
            model, optimiser = get_state_dict(training.model, training.optimiser)
            state = {"model": model, "optimiser": optimiser}
            with _quietly():
                dcp.save(state, checkpoint_id=path / STATE_FOLDER, no_dist=self._topology.world_size == 1)
            state_of_dropout = io.BytesIO()
            torch.save(_random_state(self._topology), state_of_dropout)
            self._random_file(path).write_bytes(state_of_dropout.getvalue())
            export_model(training.model, training.source, path / MODEL_FOLDER, training.export_dtype)
            self._topology.barrier()
            if self._topology.is_main:
                _complete(
                    path, progress, {"world_size": self._topology.world_size, "settings": self._settings}
                )
                self._prune()
            self._topology.barrier()
        return path

    def restore(self, training: Training) -> Progress:
        """Go on from the newest checkpoint that can be read; without one, from the start."""
        candidates = self._topology.from_main(self._candidates() if self._topology.is_main else [])
        for step in candidates:
            path = self.folder / f"step={step}"
            try:
                self._load(path, training)
                failed = False
            except (Exception, CheckpointException) as error:  # torch raises anything on damaged files
                LOG.warning("%s cannot be read and is skipped: %s", path, _last_line(error))
                failed = True
            if not self._topology.any(failed):
                progress = _read(path)
                assert progress is not None
                return progress
        if candidates:
            # weights may have been overwritten in part
            raise UserError(
                f"None of the checkpoints in {self.folder} can be read; move them away to start over."
            )
        return Progress()

    def _candidates(self) -> list[int]:
        """Return the steps of resumable checkpoints, newest first."""
        found = []
        for path in self.folder.glob("step=*"):
            progress = _read(path)
            if progress is None:
                LOG.warning("%s is half-written or damaged and is skipped", path)
            elif (path / STATE_FOLDER).is_dir():
                found.append(progress.step)
        return sorted(found, reverse=True)

    def _load(self, path: Path, training: Training) -> None:
        model, optimiser = get_state_dict(training.model, training.optimiser)
        state = {"model": model, "optimiser": optimiser}
        with _quietly():
            dcp.load(state, checkpoint_id=path / STATE_FOLDER, no_dist=self._topology.world_size == 1)
        options = [{k: v for k, v in g.items() if k != "params"} for g in training.optimiser.param_groups]
        set_state_dict(
            training.model,
            training.optimiser,
            model_state_dict=state["model"],
            optim_state_dict=state["optimiser"],
        )
        # settings come from the configuration, which may have been changed
        for group, values in zip(training.optimiser.param_groups, options, strict=True):
            group.update(values)
        if self._random_file(path).is_file():
            _set_random_state(torch.load(self._random_file(path), weights_only=True), self._topology)
        else:
            LOG.warning("%s was written by fewer processes: dropout goes on differently", path)

    def _random_file(self, path: Path) -> Path:
        return path / RANDOM_FOLDER / f"rank{self._topology.rank}.pt"

    def _prune(self) -> None:
        complete = self.complete()
        for path in self.folder.glob("step=*"):
            # what a run that was killed left; this one is past it
            if _STEP.fullmatch(path.name) and not (path / COMPLETE_FILE).exists():
                shutil.rmtree(path)
        for step in set(complete) - steps_to_keep(complete, self._config):
            path = self.folder / f"step={step}"
            # without this file it counts as half-written from the first removal on
            (path / COMPLETE_FILE).unlink()
            shutil.rmtree(path)
        if self._config.keep_resumable > 0:
            for step in sorted(complete)[: -self._config.keep_resumable]:
                for name in (STATE_FOLDER, RANDOM_FOLDER):
                    _remove_folder(self.folder / f"step={step}" / name)


def steps_to_keep(complete: Mapping[int, Progress], config: CheckpointConfig) -> set[int]:
    """Return which checkpoints stay: the best, the last ones, and always the newest."""
    if config.save_top_k == -1 and config.save_last_k == -1:
        return set(complete)
    name, sign = config.monitor, 1 if config.mode == "min" else -1
    if not any(name in progress.metrics for progress in complete.values()):
        name, sign = "loss", 1
    # other figures cannot be compared with the monitored one
    values = {step: sign * p.metrics[name] for step, p in complete.items() if name in p.metrics}
    best = sorted(values, key=lambda step: (values[step], -step))[: max(config.save_top_k, 0)]
    last = sorted(complete)[-max(config.save_last_k, 1) :]
    return {*best, *last}


@contextmanager
def _quietly() -> Iterator[None]:
    with warnings.catch_warnings():
        # that a single process saves alone is no news
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn what goes wrong on the disk into one line; torch and safetensors have errors of their own."""
    from safetensors import SafetensorError

    try:
        with disk_errors(path):
            yield
    except (CheckpointException, SafetensorError) as error:
        raise UserError(
            f"Cannot write {path}, is the disk full? ({_last_line(error)}) "
            "The checkpoints before are as they were.",
            exit_code=1,
        ) from error


def _complete(path: Path, progress: Progress, more: Mapping[str, Any]) -> None:
    """Declare a checkpoint complete, with the sizes of its files."""
    sizes = {
        str(file.relative_to(path)): file.stat().st_size for file in sorted(path.rglob("*")) if file.is_file()
    }
    for file in path.rglob("*"):
        _sync(file)
    content = {**asdict(progress), **more, "files": sizes}
    write_file(path / COMPLETE_FILE, orjson.dumps(content, option=orjson.OPT_INDENT_2))


def _read(path: Path) -> Progress | None:
    """Return the progress of a checkpoint; None where it is not complete or files are missing or cut off."""
    try:
        content = orjson.loads((path / COMPLETE_FILE).read_bytes())
        for name, size in content["files"].items():
            file = path / name
            removed = (
                name.split("/")[0] in (STATE_FOLDER, RANDOM_FOLDER) and not (path / STATE_FOLDER).exists()
            )
            if not removed and file.stat().st_size != size:
                return None
        return Progress(
            step=content["step"], consumed_samples=content["consumed_samples"], metrics=content["metrics"]
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _remove_folder(path: Path) -> None:
    """Remove a folder under another name: half of it must not be taken for the whole."""
    doomed = path.with_name(f"{path.name}-removed")
    shutil.rmtree(doomed, ignore_errors=True)
    if path.is_dir():
        path.rename(doomed)
        shutil.rmtree(doomed)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _random_state(topology: Topology) -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if topology.device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(topology.device)
    return state


def _set_random_state(state: Mapping[str, torch.Tensor], topology: Topology) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and topology.device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], topology.device)


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
