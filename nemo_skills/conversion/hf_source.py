"""A Hugging Face model folder as a source of conversion: checked, with its config and its tensors."""

from dataclasses import dataclass
from pathlib import Path

import orjson

from nemo_skills.conversion.byte_ranges import Column, Rows, TensorData
from nemo_skills.conversion.dtypes import is_weight_dtype, torch_name
from nemo_skills.conversion.families import Family, find_family
from nemo_skills.conversion.mapping import Chunk, Span, check_tensors
from nemo_skills.conversion.model_config import ModelConfig, parse_config
from nemo_skills.core.errors import UserError, require
from nemo_skills.core.log import get_logger
from nemo_skills.core.safetensors import SafetensorsFolder, TensorKind

LOG = get_logger(__name__)

CONFIG = "config.json"
_OUTPUT = "lm_head.weight"
_EMBEDDING = "model.embed_tokens.weight"
_TOKENIZER_FILES = (
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "tekken.json",
)  # fmt: skip
_TOKENIZER_NAMES = ("tokenizer", "chat_template", "additional_chat_templates")
_ROPE_TYPES = ("default", "linear", "llama3")
_LLAMA31_FACTOR = 8.0


@dataclass(frozen=True)
class HFSource:
    """A model that can be converted."""

    folder: Path
    weights: SafetensorsFolder
    config: ModelConfig
    config_text: bytes
    family: Family
    kinds: dict[str, TensorKind]
    """The tensors that are converted."""

    def data(self, chunk: Chunk, target: str | None, name: str) -> TensorData:
        """Return the numbers of a chunk, cast to a type if one is given.

        Raises:
            UserError: it would consist of tensors of different types.
        """
        source, *others = dict.fromkeys(self.kinds[span.tensor].dtype for span in chunk.spans)
        if others:
            types = ", ".join(map(torch_name, (source, *others)))
            raise UserError(
                f"{self.folder}: {name} would be made of {chunk.spans[0].tensor} and others of {types}"
            )
        return TensorData(name, tuple(self.rows(span) for span in chunk.spans), source, target or source)

    def rows(self, span: Span) -> Rows:
        """Return where some rows of a tensor lie."""
        kind, place = self.kinds[span.tensor], self.weights.place(span.tensor)
        width = kind.nbytes // kind.shape[0]
        return Rows((Column(str(place.file), place.start + span.row * width, width),), span.count)


def is_tokenizer_file(name: str) -> bool:
    """Whether a file belongs to the tokenizer."""
    return name in _TOKENIZER_FILES or name.startswith(_TOKENIZER_NAMES)


def open_hf(folder: Path, model_type: str | None) -> HFSource:
    """Open a model.

    Args:
        folder: The model's folder.
        model_type: What the user says that it is, if anything.

    Raises:
        UserError: there is none, it is damaged, its family is not supported or not what the user says, or its
            tensors are not those that its config promises.
    """
    path = folder / CONFIG
    try:
        text = path.read_bytes()
    except OSError as error:
        raise UserError(f"{folder} is no Hugging Face model: cannot read {path}: {error.strerror}") from None
    config = parse_config(text, str(path))
    family = find_family(config.model_type, model_type, str(path))
    _check_config(config, family, str(path))
    weights = SafetensorsFolder(folder)
    kinds = _without_tied(weights, config)
    check_tensors(family, config.shape, kinds, str(folder))
    for name, kind in kinds.items():
        if not is_weight_dtype(kind.dtype):
            raise UserError(
                f"{folder}: tensor {name} has type {kind.dtype}: quantised models cannot be converted"
            )
    return HFSource(folder, weights, config, text, family, kinds)


def _check_config(config: ModelConfig, family: Family, where: str) -> None:
    require(not config.linear_bias, f"{where}: biases of linear layers cannot be expressed in NeMo's format")
    require(
        config.activation == "silu", f"{where}: hidden_act={config.activation} cannot be converted, only silu"
    )
    if config.rope_type not in _ROPE_TYPES:
        LOG.warning(
            "%s: NeMo does not know rope_type=%s; on the way back it is kept", where, config.rope_type
        )
    if config.sliding_window and "window_size" not in family.nemo_settings(config):
        LOG.warning(
            "%s: NeMo knows no attention window of %s models; on the way back it is kept", where, family.name
        )
    if config.rope_type == "llama3" and config.rope_factor != _LLAMA31_FACTOR:
        LOG.warning(
            "%s: NeMo knows rope scaling of type llama3 with the factor %g only; on the way back %s is kept",
            where, _LLAMA31_FACTOR, config.rope_factor,
        )  # fmt: skip


def _without_tied(weights: SafetensorsFolder, config: ModelConfig) -> dict[str, TensorKind]:
    """Return the tensors, less an output layer that is the embedding once more."""
    kinds = dict(weights.kinds)
    if not config.shape.tied or _OUTPUT not in kinds or _EMBEDDING not in kinds:
        return kinds
    if kinds[_OUTPUT] != kinds[_EMBEDDING] or not _equal(weights, _OUTPUT, _EMBEDDING):
        raise UserError(
            f"{weights.folder}: tie_word_embeddings is true, but {_OUTPUT} and {_EMBEDDING} differ"
        )
    del kinds[_OUTPUT]
    return kinds


def _equal(weights: SafetensorsFolder, one: str, other: str) -> bool:
    size = weights.kinds[one].nbytes
    piece = 1 << 20
    for start in range(0, size, piece):
        views = [memoryview(bytearray(min(piece, size - start))) for _ in range(2)]
        for name, view in zip((one, other), views, strict=True):
            weights.read_into(name, start, view)
        if views[0] != views[1]:
            return False
    weights.close()
    return True


def config_with_dtype(text: bytes, dtype: str | None) -> bytes:
    """Return a `config.json` that names another type, or the very same where it stays."""
    if dtype is None:
        return text
    raw = orjson.loads(text)
    keys = [key for key in ("dtype", "torch_dtype") if key in raw] or ["dtype"]
    if all(raw.get(key) == torch_name(dtype) for key in keys):
        return text
    return orjson.dumps(raw | dict.fromkeys(keys, torch_name(dtype)), option=orjson.OPT_INDENT_2) + b"\n"
