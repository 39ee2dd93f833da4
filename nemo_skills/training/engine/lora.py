"""Low-rank adapters through PEFT."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from nemo_skills.core.errors import UserError
from nemo_skills.training.config import ModelConfig
from nemo_skills.training.engine.parallel import Topology

_BASE, _A, _B = ".base_layer.", ".lora_A.default.", ".lora_B.default."


def add_lora(model: Any, config: ModelConfig, topology: Topology) -> None:
    """Freeze a model and put adapters into its linear layers.

    Raises:
        UserError: PEFT is missing, or matrices are split.
    """
    if topology.tp > 1:
        raise UserError("model.peft.peft_scheme=lora needs model.tensor_model_parallel_size=1.")
    try:
        from peft import LoraConfig
    except ImportError:
        raise UserError("PEFT is missing: pip install 'nemo-skills[lora]'") from None
    tuning = config.peft.lora_tuning
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model.add_adapter(
            LoraConfig(
                r=tuning.adapter_dim,
                lora_alpha=tuning.alpha or tuning.adapter_dim,
                lora_dropout=tuning.adapter_dropout,
                target_modules=tuning.target_modules or _linear_layers(model),
            )
        )


def share_gradients(parameters: Iterable[torch.nn.Parameter], topology: Topology) -> None:
    """Take the mean over processes of gradients that FSDP does not manage: each has all adapters."""
    found = [p.grad for p in parameters if p.grad is not None and not isinstance(p.grad, DTensor)]
    if topology.data_size == 1 or not found:
        return
    flat = torch.cat([grad.flatten() for grad in found])
    dist.all_reduce(flat)
    pieces = (flat / topology.data_size).split([grad.numel() for grad in found])
    for grad, piece in zip(found, pieces, strict=True):
        grad.copy_(piece.view_as(grad))


def merged(model: Any, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return weights with the adapters of `model` added, if it has any."""
    if not any(_BASE in name for name in weights):
        return dict(weights)
    (settings,) = model.peft_config.values()
    scale = settings.lora_alpha / settings.r
    result = {}
    for name, tensor in weights.items():
        if _A in name or _B in name:
            continue
        plain = name.replace(_BASE, ".")
        if _BASE in name and name.endswith(".weight"):
            a, b = (weights[name.replace(_BASE, part)] for part in (_A, _B))
            result[plain] = tensor + scale * (b @ a)
        else:
            result[plain] = tensor
    return result


def _linear_layers(model: Any) -> list[str]:
    head = model.get_output_embeddings()
    found = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and m is not head]
    return sorted({name.rpartition(".")[2] for name in found})
