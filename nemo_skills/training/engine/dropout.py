"""Dropout as NeMo names it, added to models that may not have it."""

from typing import Any

import torch
from torch.nn.functional import dropout

from nemo_skills.core.errors import UserError
from nemo_skills.training.config import ModelConfig


def add_dropout(model: Any, config: ModelConfig) -> None:
    """Set attention dropout, and add dropout inside and after the layers' blocks.

    Raises:
        UserError: the model's layers are built in a way that is not known here.
    """
    if config.attention_dropout:
        found = [m for m in model.modules() if isinstance(getattr(m, "attention_dropout", None), float)]
        _check(found, model, "attention_dropout")
        for module in found:
            module.attention_dropout = config.attention_dropout
    if config.hidden_dropout:
        _hook(model, ("self_attn", "mlp"), "hidden_dropout", config.hidden_dropout)
    if config.ffn_dropout:
        _hook(model, ("down_proj",), "ffn_dropout", config.ffn_dropout)


def _hook(model: Any, names: tuple[str, ...], setting: str, share: float) -> None:
    found = [m for name, m in model.named_modules() if name.rpartition(".")[2] in names]
    _check(found, model, setting)
    for module in found:
        if setting == "ffn_dropout":
            module.register_forward_pre_hook(lambda m, args: (_drop(args[0], share, m), *args[1:]))
        else:
            module.register_forward_hook(
                lambda m, _, out: (
                    (_drop(out[0], share, m), *out[1:]) if isinstance(out, tuple) else _drop(out, share, m)
                )
            )


def _drop(x: torch.Tensor, share: float, module: torch.nn.Module) -> torch.Tensor:
    return dropout(x, share, training=module.training)


def _check(found: list[Any], model: Any, setting: str) -> None:
    if not found:
        raise UserError(f"model.{setting}: where to put it in {type(model).__name__} is not known.")
