"""Which process does what: data, context and tensor parallel ranks, and sums over them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from nemo_skills.core.errors import UserError
from nemo_skills.training.config import ModelConfig, TrainerConfig


@dataclass(frozen=True, kw_only=True)
class Topology:
    """The place of this process among the others: tensor ranks are neighbours, then context, then data."""

    rank: int = 0
    tp: int = 1
    cp: int = 1
    dp: int = 1
    device: torch.device
    cp_group: Any = None
    """The processes that share a sequence."""

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return self.tp * self.cp * self.dp

    @property
    def data_size(self) -> int:
        """Over how many processes the tokens of a step are spread."""
        return self.dp * self.cp

    @property
    def cp_rank(self) -> int:
        """Rank among the processes that share a sequence."""
        return self.rank // self.tp % self.cp

    @property
    def dp_rank(self) -> int:
        """Rank among the groups of processes that see different rows."""
        return self.rank // (self.tp * self.cp)

    @property
    def data_rank(self) -> int:
        """Rank among the processes that see different tokens."""
        return self.rank // self.tp

    @property
    def is_main(self) -> bool:
        """Whether this process logs and writes what is written once."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Add numbers up over the processes that see different tokens."""
        if self.world_size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        # tensor-parallel processes see the same tokens and have the same numbers
        return [float(value) / self.tp for value in total]

    def any(self, flag: bool) -> bool:
        """Tell whether the flag is set in any process."""
        return self.sum([float(flag)])[0] > 0

    def from_main(self, value: Any) -> Any:
        """Return the main process's value in every process."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def barrier(self) -> None:
        """Wait for the others."""
        if self.world_size > 1:
            dist.barrier()


def start(model: ModelConfig, trainer: TrainerConfig) -> Topology:
    """Join the processes that torchrun started, or be the only one.

    Raises:
        UserError: the number of processes does not fit the configuration.
    """
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    _check_counts(trainer, world)
    tp, cp = model.tensor_model_parallel_size, model.context_parallel_size
    if world % (tp * cp):
        raise UserError(
            f"{world} processes cannot be divided into groups of model.tensor_model_parallel_size={tp} "
            f"x model.context_parallel_size={cp}; start a multiple of {tp * cp}."
        )
    device = _device()
    if world == 1:
        return Topology(device=device)
    # numbers are agreed upon through CPU memory also where tensors travel between GPUs
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        # the others wait while one writes a large model
        dist.init_process_group(backend, timeout=timedelta(hours=2))
    ranks = torch.arange(world).view(-1, cp, tp)
    cp_groups = ranks.permute(0, 2, 1).reshape(-1, cp).tolist()
    return Topology(
        rank=rank,
        tp=tp,
        cp=cp,
        dp=world // (tp * cp),
        device=device,
        cp_group=_my_group(cp_groups) if cp > 1 else None,
    )


def stop() -> None:
    """Leave together: a process that goes early would break the connections of the others."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def _check_counts(trainer: TrainerConfig, world: int) -> None:
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    found = {"devices": local, "num_nodes": world // local}
    for name, count in found.items():
        wanted = getattr(trainer, name)
        if wanted not in (None, -1, count):
            raise UserError(
                f"trainer.{name}={wanted}, but {count} were started. "
                "Start the processes with torchrun --nproc-per-node (and --nnodes)."
            )


def _device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def _my_group(groups: list[list[int]]) -> Any:
    group, _ = dist.new_subgroups_by_enumeration(groups)
    return group
