"""The tensors of a NeMo checkpoint under the names that rules use, whichever way they are stored."""

from collections.abc import Iterator

from nemo_skills.conversion.byte_ranges import Rows
from nemo_skills.conversion.families import Family, Rule
from nemo_skills.conversion.mapping import NemoRows, rules_of
from nemo_skills.conversion.model_config import DecoderShape
from nemo_skills.conversion.torch_dist_reader import StoredTensor, TorchDistReader
from nemo_skills.core.errors import UserError, did_you_mean

_EMBEDDING = "embedding.word_embeddings.weight"
_LAYERS = "decoder.layers."
# a checkpoint may store gate and up as tensors of their own
_HALVES = ("_w", "_v")


class NemoTensors:
    """Finds tensors: with any prefix, layers stacked or one by one, norms with either layer spec's names.

    Raises:
        UserError: there is no embedding, so that it is no model.
    """

    def __init__(self, reader: TorchDistReader, where: str) -> None:
        self._reader = reader
        self._where = where
        found = [key for key in reader.tensors if key.endswith(_EMBEDDING)]
        if not found:
            keys = ", ".join(list(reader.tensors)[:3]) or "nothing"
            raise UserError(f"{where}: tensor {_EMBEDDING} is missing; there are {keys}")
        self.prefix = found[0].removesuffix(_EMBEDDING)

    @property
    def stored(self) -> dict[str, StoredTensor]:
        """All tensors by key."""
        return self._reader.tensors

    def has(self, rule: Rule) -> bool:
        """Whether there is something of a rule's tensor."""
        return next(self._candidates(rule, 0 if rule.per_layer else None), None) is not None

    def dtype(self, place: NemoRows) -> str:
        """Return the type of some rows."""
        return self._find(place)[0].dtype

    def rows(self, place: NemoRows) -> list[Rows]:
        """Return where some rows lie."""
        tensor, layer, row = self._find(place)
        return self._reader.rows(tensor, layer, row, place.count)

    def _find(self, place: NemoRows) -> tuple[StoredTensor, int | None, int]:
        row = place.row
        for tensor, layer in self._candidates(place.rule, place.layer):
            rows = tensor.size[0 if layer is None else 1]
            if row < rows:
                return tensor, layer, row
            row -= rows
        key = self.prefix + (_LAYERS if place.rule.per_layer else "") + place.rule.nemo
        near = did_you_mean(key, self.stored)
        at = "" if place.layer is None else f" of layer {place.layer}"
        raise UserError(f"{self._where}: tensor {key}{at} is missing.{near}")

    def _candidates(self, rule: Rule, layer: int | None) -> Iterator[tuple[StoredTensor, int | None]]:
        """Yield what holds a rule's tensor: one after the other if it is stored in halves."""
        for name in (rule.nemo, *rule.others):
            for key, index in self._keys(name, layer):
                parts = [key] if key in self.stored else [f"{key}{half}" for half in _HALVES]
                if all(part in self.stored for part in parts):
                    yield from ((self.stored[part], index) for part in parts)
                    return

    def _keys(self, name: str, layer: int | None) -> list[tuple[str, int | None]]:
        if layer is None:
            return [(self.prefix + name, None)]
        layers = self.prefix + _LAYERS
        return [(layers + name, layer), (f"{layers}{layer}.{name}", None)]

    def check(self, family: Family, shape: DecoderShape) -> None:
        """See to it that the checkpoint has the tensors of a model, of the right sizes, and no others.

        Raises:
            UserError: it has not.
        """
        known = set()
        for rule in rules_of(family, shape):
            for layer in range(shape.layers) if rule.per_layer else [None]:
                self._find(NemoRows(rule, layer, 0, 1))
                tensors = list(self._candidates(rule, layer))
                self._check_size(rule, tensors, shape)
                known |= {tensor.key for tensor, _ in tensors}
        unknown = [key for key in self.stored if key not in known]
        if unknown:
            more = f" and {len(unknown) - 1} more" if unknown[1:] else ""
            raise UserError(f"{self._where}: tensor {unknown[0]}{more} is not known of a {family.name} model")

    def _check_size(
        self, rule: Rule, tensors: list[tuple[StoredTensor, int | None]], shape: DecoderShape
    ) -> None:
        first = rule.hf[0].shape(shape)
        wanted = (sum(tensor.shape(shape)[0] for tensor in rule.hf), *first[1:])
        stacked = tensors[0][1] is not None
        sizes = [tensor.size[1:] if stacked else tensor.size for tensor, _ in tensors]
        got = (sum(size[0] for size in sizes), *sizes[0][1:])
        # rows of the vocabulary may be padded to a round number
        padded = rule.hf[0].axes[0] == "vocab" and got[0] >= wanted[0] and got[1:] == wanted[1:]
        layers = tensors[0][0].size[0] if stacked else shape.layers
        if layers != shape.layers or not (got == wanted or padded):
            key, sizes_text = (
                tensors[0][0].key,
                f"{layers} layers of {list(got)}" if stacked else f"{list(got)}",
            )
            by_config = f"{shape.layers} layers of {list(wanted)}" if stacked else f"{list(wanted)}"
            raise UserError(f"{self._where}: tensor {key} is {sizes_text}, by the config {by_config}")
