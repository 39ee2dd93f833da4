"""Measures the tensors of a real training; as a program in several processes, see test_recipes_memory."""

import json
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nemo_skills.training.engine import checkpoint, job, parallel
from nemo_skills.training.engine.dpo import dpo_task
from nemo_skills.training.engine.loop import Run, Trainer
from nemo_skills.training.engine.outcome import StopFlag
from nemo_skills.training.engine.sft import sft_task
from nemo_skills.training.recipes import ConfigContainer


class Alive(TorchDispatchMode):
    """Knows the storages that are alive, and their bytes at the end of every operation.

    Their sizes are read anew each time: FSDP empties and fills storages that stay.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._storages: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves((result, args)):
            if isinstance(leaf, torch.Tensor):
                self.add(leaf)
        found = (reference() for reference in list(self._storages.values()))
        self.peak = max(self.peak, sum(storage.nbytes() for storage in found if storage is not None))
        return result

    def add(self, tensor: torch.Tensor) -> None:
        """Count a tensor from now on."""
        storage: Any = local(tensor).untyped_storage()
        key = storage._cdata
        if key not in self._storages:
            self._storages[key] = weakref.ref(storage)
            weakref.finalize(storage, self._storages.pop, key, None)


def local(tensor: Any) -> torch.Tensor:
    """Return what this process has of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def measure(config: ConfigContainer) -> dict[str, int]:
    """Train; return the peak, and the bytes of weights and moments in the end."""
    settings = config.main_config()
    task = dpo_task(settings) if config.dpo else sft_task(settings)
    topology = parallel.start(settings.model, settings.trainer)
    run = job.build_run(settings, task, topology)
    alive = Alive()
    for weights in (*run.training.model.parameters(), *run.training.model.buffers()):
        alive.add(weights.data)
    folder = Path(settings.exp_manager.explicit_log_dir)
    kept = settings.exp_manager.checkpoint_callback_params
    trainer = Trainer(run, checkpoint.Checkpoints(folder, kept, topology, {}), None, StopFlag(None))
    trainer._save = lambda _: None  # type: ignore[method-assign]  # not part of a step
    unread = sum(map(_unread, run.training.model.parameters()))
    with alive:
        trainer.train(checkpoint.Progress())
    return {
        "peak": alive.peak - unread,
        "weights": sum(local(weights).nbytes for weights in run.training.model.parameters()),
        "moments": sum(local(moment).nbytes for moment in _moments(run)),
    }


def _unread(weights: torch.Tensor) -> int:
    """Return the bytes of a mapped file in the storage of weights that are another process's part."""
    return local(weights).untyped_storage().nbytes() - local(weights).nbytes


def _moments(run: Run) -> Iterator[torch.Tensor]:
    for state in run.training.optimiser.state.values():
        yield from (state["exp_avg"], state["exp_avg_sq"])


if __name__ == "__main__":
    torch.set_num_threads(1)
    measured = []
    for file in map(Path, sys.argv[2:]):
        measured.append(measure(ConfigContainer.from_main_overrides(file.read_text().splitlines())))
    if torch.distributed.get_rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps(measured))
    parallel.stop()
