"""Attention within documents: rows and packs lie end to end in one sequence, and no token sees another row.

Documents are attended to one by one, so no mask of the whole sequence ever exists. With context parallelism
each process has two stretches of the sequence, one from each end, which balances the work; keys and values
are gathered from the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch.nn.functional import scaled_dot_product_attention

from nemo_skills.core.errors import UserError
from nemo_skills.training.engine.parallel import Topology

NAME = "nemo_skills_documents"


class Segment(NamedTuple):
    """Neighbouring queries of one document and the keys they see: its first `keys` tokens."""

    queries: int
    document: int
    keys: int


@dataclass(frozen=True)
class Layout:
    """Where documents begin and end in a sequence, and which part of it this process has."""

    lengths: tuple[int, ...]
    segments: tuple[Segment, ...]
    parts: int = 1
    """Number of stretches that the sequence is cut into."""
    group: Any = None

    @classmethod
    def whole(cls, lengths: Sequence[int]) -> "Layout":
        """Return the layout of a process that has all of the sequence."""
        segments = tuple(Segment(length, i, length) for i, length in enumerate(lengths))
        return cls(tuple(lengths), segments)

    @classmethod
    def shared(cls, lengths: Sequence[int], topology: Topology) -> "Layout":
        """Return the layout of one process of several that share the sequence."""
        if topology.cp == 1:
            return cls.whole(lengths)
        parts = 2 * topology.cp
        size, rest = divmod(sum(lengths), parts)
        assert not rest, "the sequence is padded to a multiple of the parts"
        ends = list(accumulate(lengths))
        segments = []
        for part in (topology.cp_rank, parts - 1 - topology.cp_rank):
            first, last = part * size, (part + 1) * size
            for i, (end, length) in enumerate(zip(ends, lengths, strict=True)):
                start = end - length
                if first < end and start < last:
                    stop = min(last, end)
                    segments.append(Segment(stop - max(first, start), i, stop - start))
        return cls(tuple(lengths), tuple(segments), parts, topology.cp_group)


def register() -> None:
    """Make this attention known to transformers."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, document_attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, lambda *_, **__: None)


def document_attention(
    module: torch.nn.Module,  # noqa: ARG001 (transformers calls by position)
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within documents; tensors are (1, heads, tokens, head size)."""
    for name in ("softcap", "s_aux", "position_bias"):
        if options.get(name) is not None:
            raise UserError(f"This model's attention uses {name}: set ++model.attn_implementation=eager.")
    layout: Layout = options["document_layout"]
    assert attention_mask is None
    if layout.parts > 1:
        key, value = (_gather(x, layout) for x in (key, value))
    keys, values = (x.split(layout.lengths, dim=2) for x in (key, value))
    outputs = []
    for segment, queries in zip(
        layout.segments, query.split([s.queries for s in layout.segments], dim=2), strict=True
    ):
        k, v = (x[segment.document][:, :, : segment.keys] for x in (keys, values))
        mask = _mask(segment, options.get("sliding_window"), query.device)
        outputs.append(
            scaled_dot_product_attention(
                queries,
                k,
                v,
                attn_mask=mask,
                dropout_p=options.get("dropout", 0.0),
                is_causal=mask is None,
                scale=options.get("scaling"),
                enable_gqa=query.shape[1] != key.shape[1],
            )
        )
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def _mask(segment: Segment, window: int | None, device: torch.device) -> torch.Tensor | None:
    """Return which keys each query sees, or None where that is every one before it."""
    limited = window is not None and segment.keys > window
    if segment.queries == segment.keys and not limited:
        return None
    ones = torch.ones(segment.queries, segment.keys, dtype=torch.bool, device=device)
    offset = segment.keys - segment.queries
    mask = ones.tril(offset)
    return mask & ones.triu(offset - window + 1) if limited and window is not None else mask


def _gather(x: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Put the sequence together from the two stretches that each process has."""
    from torch.distributed._functional_collectives import all_gather_tensor_autograd

    gathered = all_gather_tensor_autograd(x.contiguous(), gather_dim=2, group=layout.group)
    pieces = gathered.chunk(layout.parts, dim=2)
    return torch.cat([*pieces[0::2], *reversed(pieces[1::2])], dim=2)


def own_part(x: torch.Tensor, topology: Topology) -> torch.Tensor:
    """Return this process's two stretches of a sequence that lies in the last dimension."""
    if topology.cp == 1:
        return x
    pieces = x.chunk(2 * topology.cp, dim=-1)
    return torch.cat([pieces[topology.cp_rank], pieces[-1 - topology.cp_rank]], dim=-1)
