"""Next-token loss, computed inside the model so that only the logits that count exist, a piece at a time."""

import types
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from nemo_skills.core.log import get_logger
from nemo_skills.training.engine.attention import Layout

LOG = get_logger(__name__)

IGNORED = -100
"""Target of a token whose successor is not trained."""
_PROBE = 8
_TOLERANCE = 1e-3


def install_token_losses(model: Any, chunk_size: int, device: torch.device) -> None:
    """Make `model(…, targets=…)` return the loss of every trained token instead of logits.

    Some models change logits after their head (scaling, soft caps). A probe shows it; such a model's own
    forward is used, and the logits of all trained tokens exist at once.

    Args:
        model: a causal language model of transformers, sharded or not.
        chunk_size: tokens whose logits exist at the same time; 0 is no limit.
        device: where the inputs are.
    """
    head = model.get_output_embeddings()
    inputs = _probe_inputs(device)
    targets = inputs["input_ids"][0].roll(-1)
    original_model, original_head = model.forward, head.forward
    if not isinstance(getattr(model, model.base_model_prefix, None), torch.nn.Module):
        model.forward = _OwnLogits(original_model)
        return
    expected = cross_entropy(model(**inputs).logits[0].float(), targets, reduction="none")
    head.forward = _ChunkedHead(original_head, chunk_size)
    model.forward = types.MethodType(_forward, model)
    found = model(**inputs, targets=targets)
    if not torch.allclose(expected, found, rtol=_TOLERANCE, atol=_TOLERANCE):
        LOG.warning("%s changes logits after its head: they are computed whole", type(model).__name__)
        head.forward = original_head
        model.forward = _OwnLogits(original_model)


def _probe_inputs(device: torch.device) -> dict[str, Any]:
    position_ids = torch.arange(_PROBE, device=device)[None]
    return {
        "input_ids": position_ids + 1,
        "position_ids": position_ids,
        "use_cache": False,
        "document_layout": Layout.whole([_PROBE]),
    }


def _forward(self: Any, *, targets: torch.Tensor, **inputs: Any) -> torch.Tensor:
    """Stand in for a model's forward: sharding hooks around it stay in force."""
    hidden = getattr(self, self.base_model_prefix)(**inputs).last_hidden_state[0]
    index, labels, weight = _trained(targets)
    losses: torch.Tensor = self.get_output_embeddings()(hidden.index_select(0, index), labels)
    return losses * weight


class _OwnLogits:
    """The fallback: the model's own forward, for the trained tokens only."""

    def __init__(self, original: Any) -> None:
        self._original = original

    def __call__(self, *, targets: torch.Tensor, **inputs: Any) -> torch.Tensor:
        index, labels, weight = _trained(targets)
        logits = self._original(**inputs, logits_to_keep=index).logits[0]
        return cross_entropy(logits.float(), labels, reduction="none") * weight


class _ChunkedHead:
    """Stands in for the forward of the head: hidden states and labels in, losses out.

    A single call however many pieces there are, for FSDP gathers and frees weights around calls.
    """

    def __init__(self, original: Any, chunk_size: int) -> None:
        self._original = original
        self._chunk_size = chunk_size

    def __call__(self, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        size = self._chunk_size or len(labels)
        if len(labels) <= size:
            return self._losses(hidden, labels)
        pieces = zip(hidden.split(size), labels.split(size), strict=True)
        # logits are computed once more in the backward pass, where each piece is freed before the next
        return torch.cat([checkpoint(self._losses, h, y, use_reentrant=False) for h, y in pieces])

    def _losses(self, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return cross_entropy(self._original(hidden).float(), labels, reduction="none")


def _trained(targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Return index and labels of the trained tokens, and their weight.

    Where there is none the first token comes with weight 0: every process takes part in the backward pass.
    """
    index = (targets != IGNORED).nonzero().squeeze(1)
    if len(index):
        return index, targets[index], 1.0
    first = torch.zeros(1, dtype=torch.long, device=targets.device)
    return first, first, 0.0
