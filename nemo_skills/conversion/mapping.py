"""Rules of a family spelled out for one model: which rows of which tensors are the same."""

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from nemo_skills.conversion.families import Family, HFTensor, Rule
from nemo_skills.conversion.model_config import DecoderShape
from nemo_skills.core.errors import UserError, did_you_mean
from nemo_skills.core.safetensors import TensorKind

_SHOWN = 3


@dataclass(frozen=True)
class Span:
    """Rows of a Hugging Face tensor."""

    tensor: str
    row: int
    count: int


@dataclass(frozen=True)
class Chunk:
    """A block of rows of a tensor of NeMo, and where they are on the other side, in order."""

    rule: Rule
    layer: int | None
    row: int
    shape: tuple[int, ...]
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class NemoRows:
    """Rows of a tensor of NeMo."""

    rule: Rule
    layer: int | None
    row: int
    count: int


def rules_of(family: Family, shape: DecoderShape) -> list[Rule]:
    """Return the rules that apply to a model."""
    return [rule for rule in family.rules if rule.when(shape)]


def hf_shapes(family: Family, shape: DecoderShape) -> dict[str, tuple[int, ...]]:
    """Return all tensors that a Hugging Face model has, in their usual order."""
    names: dict[str, tuple[int, ...]] = {}
    grouped = itertools.groupby(rules_of(family, shape), key=lambda rule: rule.per_layer)
    for is_per_layer, group in grouped:
        rules = list(group)
        for layer in range(shape.layers if is_per_layer else 1):
            for tensor in (tensor for rule in rules for tensor in rule.hf):
                names[tensor.name.format(layer=layer)] = tensor.shape(shape)
    return names


def chunks(family: Family, shape: DecoderShape) -> Iterator[Chunk]:
    """Yield the chunks that a model is stored in as NeMo does it."""
    for rule in rules_of(family, shape):
        for layer in range(shape.layers) if rule.per_layer else [None]:
            yield from _chunks_of(rule, layer, shape)


def _chunks_of(rule: Rule, layer: int | None, shape: DecoderShape) -> Iterator[Chunk]:
    rest = rule.hf[0].shape(shape)[1:]
    if rule.how == "interleave":
        spans = tuple(_interleaved(rule.hf, layer, shape))
        yield Chunk(rule, layer, 0, (sum(span.count for span in spans), *rest), spans)
        return
    row = 0
    for tensor in rule.hf:
        rows = tensor.shape(shape)[0]
        yield Chunk(rule, layer, row, (rows, *rest), (Span(_name(tensor, layer), 0, rows),))
        row += rows


def _interleaved(tensors: tuple[HFTensor, ...], layer: int | None, shape: DecoderShape) -> Iterator[Span]:
    """Yield, group after group, the query rows that share a key, that key's rows, and the value's."""
    for group in range(shape.groups):
        for tensor in tensors:
            count = tensor.shape(shape)[0] // shape.groups
            yield Span(_name(tensor, layer), group * count, count)


def _name(tensor: HFTensor, layer: int | None) -> str:
    return tensor.name.format(layer=layer)


def nemo_rows(family: Family, shape: DecoderShape) -> dict[str, list[NemoRows]]:
    """Return for each Hugging Face tensor where its rows are in NeMo, in order."""
    found: dict[str, list[tuple[int, NemoRows]]] = {}
    for chunk in chunks(family, shape):
        row = chunk.row
        for span in chunk.spans:
            place = NemoRows(chunk.rule, chunk.layer, row, span.count)
            found.setdefault(span.tensor, []).append((span.row, place))
            row += span.count
    order = hf_shapes(family, shape)
    return {name: [place for _, place in sorted(found[name], key=lambda item: item[0])] for name in order}


def check_tensors(family: Family, shape: DecoderShape, kinds: Mapping[str, TensorKind], where: str) -> None:
    """See to it that a Hugging Face model has the tensors that its config promises, and no others.

    Raises:
        UserError: it has not.
    """
    expected = hf_shapes(family, shape)
    extra = [
        name for name in kinds
        if name not in expected and not any(re.fullmatch(pattern, name) for pattern in family.ignored)
    ]  # fmt: skip
    missing = [name for name in expected if name not in kinds]
    if missing:
        near = did_you_mean(missing[0], extra)
        raise UserError(f"{where}: {_listed('tensor', missing)} missing.{near}")
    if extra:
        hint = did_you_mean(extra[0], expected)
        raise UserError(f"{where}: {_listed('tensor', extra)} not known of a {family.name} model.{hint}")
    for name, wanted in expected.items():
        if kinds[name].shape != wanted:
            got = list(kinds[name].shape)
            raise UserError(f"{where}: tensor {name} is {got}, by the model's config {list(wanted)}")


def _listed(what: str, names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if names[_SHOWN:] else ""
    return f"{what}s {shown}{more} are" if names[1:] else f"{what} {shown} is"
