"""AdamW, learning rates, and the norm of gradients that may be sharded in different ways."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from nemo_skills.training.config import OptimConfig, SchedConfig

_SMALL = 1e-6


def build_optimiser(model: torch.nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """Return AdamW over the trainable weights; vectors (norms, biases) are not decayed."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    options: dict[str, Any] = {
        "lr": config.lr,
        "betas": (config.betas[0], config.betas[1]),
        "eps": config.eps,
    }
    # one kernel for all weights cannot mix sharded tensors with others
    alike = not any(isinstance(p, DTensor) for p in trainable)
    return torch.optim.AdamW(groups, **options, **({"fused": True} if alike else {"foreach": False}))


def learning_rate(step: int, total: int, config: OptimConfig) -> float:
    """Return the learning rate of a step, counted from 0, of `total`."""
    sched: SchedConfig = config.sched
    if step < sched.warmup_steps:
        return config.lr * (step + 1) / (sched.warmup_steps + 1)
    if sched.name == "constant":
        return config.lr
    span = max(1, total - sched.warmup_steps - sched.constant_steps)
    done = min(1.0, (step - sched.warmup_steps) / span)
    left = 1 - done if sched.name == "linear" else (1 + math.cos(math.pi * done)) / 2
    return sched.min_lr + (config.lr - sched.min_lr) * left


def clip_gradients(parameters: Iterable[torch.nn.Parameter], limit: float) -> float:
    """Return the norm of the whole gradient, and scale the gradient down where it exceeds the limit.

    Args:
        parameters: of the model; parts that other processes have are counted too, copies once.
        limit: largest norm; 0 is no limit.
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    if not grads:
        return 0.0
    by_groups: dict[tuple[str, ...], list[torch.Tensor]] = defaultdict(list)
    groups: dict[str, Any] = {}
    for grad in grads:
        names: tuple[str, ...] = ()
        if isinstance(grad, DTensor):
            mesh = grad.device_mesh
            split = [i for i, placement in enumerate(grad.placements) if not placement.is_replicate()]
            assert not any(grad.placements[i].is_partial() for i in split)
            names = tuple(mesh.mesh_dim_names[i] for i in split)
            groups |= {mesh.mesh_dim_names[i]: mesh.get_group(i) for i in split}
        by_groups[names].append(_local(grad))
    total = 0.0
    # every process goes through the same groups in the same order
    for names, tensors in sorted(by_groups.items()):
        norms = torch.stack(torch._foreach_norm(tensors))
        square = norms.double().pow(2).sum()
        for name in names:
            dist.all_reduce(square, group=groups[name])
        total += square.item()
    norm = math.sqrt(total)
    if limit and norm > limit:
        torch._foreach_mul_([_local(grad) for grad in grads], limit / (norm + _SMALL))
    return norm


def _local(grad: torch.Tensor) -> torch.Tensor:
    return grad.to_local() if isinstance(grad, DTensor) else grad


class Gradients:
    """Adds up gradients that must not be added up in place.

    Where tensor parallelism keeps a copy of a weight in every process but gives each a part of its input
    (norms of single heads), transformers sums `grad` over the processes after every backward pass: the sum of
    earlier micro-batches would be counted again.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        self._parameters = parameters
        self._held: dict[int, torch.Tensor] = {}

    def collect(self, *, more: bool) -> None:
        """Take up the gradients of a micro-batch; after the last one put the sums in place."""
        for i, parameter in enumerate(self._parameters):
            if parameter.grad is None:
                continue
            grad = self._held.pop(i) + parameter.grad if i in self._held else parameter.grad
            if more:
                self._held[i], parameter.grad = grad, None
            else:
                parameter.grad = grad


def build_gradients(model: Any) -> Gradients:
    """Return what adds up the gradients of a model's step."""
    from transformers.distributed.parallel_utils import _get_parameter_plan

    plan = model.tp_plan if getattr(model, "_tp_size", None) not in (None, 1) else {}
    style = "replicated_with_grad_allreduce"
    if style not in (plan or {}).values():
        return Gradients([])
    found = []
    for name, parameter in model.named_parameters():
        if _get_parameter_plan(parameter_name=name, plan=plan, is_weight=True) == style:
            found.append(parameter)
    return Gradients(found)
