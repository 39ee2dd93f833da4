"""What a Hugging Face `config.json` says about a decoder, as typed fields."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import orjson

from nemo_skills.core.errors import UserError

Axis = Literal["vocab", "hidden", "q", "kv", "ffn", "head_size"]
"""Names for the lengths of a tensor's axes."""


@dataclass(frozen=True, kw_only=True)
class DecoderShape:
    """The sizes that decide about the shapes of all tensors."""

    layers: int
    hidden: int
    heads: int
    groups: int
    """Heads of keys and values: as many as `heads`, fewer (grouped-query), or one (multi-query attention)."""
    head_size: int
    ffn: int
    vocab: int
    tied: bool
    """Whether the output layer is the embedding."""

    @property
    def q(self) -> int:
        """Rows of the query projection."""
        return self.heads * self.head_size

    @property
    def kv(self) -> int:
        """Rows of the projection of keys, and of that of values."""
        return self.groups * self.head_size

    def length(self, axis: Axis) -> int:
        """Return the length of a named axis."""
        value = getattr(self, axis)
        assert isinstance(value, int)
        return value


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A model's config, as far as other formats need it."""

    model_type: str
    shape: DecoderShape
    dtype: str | None
    """As torch names it; what the weights have may differ."""
    max_positions: int
    norm_eps: float
    init_std: float
    rope_base: float
    rope_type: str
    """`default`, `llama3`, or another way to reach further positions."""
    rope_factor: float | None
    sliding_window: int | None
    """How far attention looks back; None for all the way."""
    linear_bias: bool
    """Whether the output projection of attention or the feed-forward part has biases."""
    activation: str


def parse_config(text: bytes, where: str) -> ModelConfig:
    """Return the contents of a `config.json`.

    Raises:
        UserError: it is no JSON, or a key is missing or of another type.
    """
    try:
        raw = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise UserError(f"{where} is no JSON: {error}") from None
    if not isinstance(raw, dict) or not isinstance(raw.get("model_type"), str):
        raise UserError(f"{where} names no model_type")
    keys = _Keys(raw, where)
    heads, hidden = keys.integer("num_attention_heads"), keys.integer("hidden_size")
    shape = DecoderShape(
        layers=keys.integer("num_hidden_layers"),
        hidden=hidden,
        heads=heads,
        groups=keys.integer("num_key_value_heads", heads),
        head_size=keys.integer("head_dim", hidden // heads),
        ffn=keys.integer("intermediate_size"),
        vocab=keys.integer("vocab_size"),
        tied=bool(raw.get("tie_word_embeddings")),
    )
    if shape.heads % shape.groups:
        raise UserError(f"{where}: num_attention_heads={shape.heads} is no multiple of {shape.groups} groups")
    rope = _Keys(keys.section("rope_parameters") or keys.section("rope_scaling"), where)
    window = raw.get("sliding_window") if raw.get("use_sliding_window", True) else None
    return ModelConfig(
        model_type=raw["model_type"],
        shape=shape,
        dtype=raw.get("dtype") or raw.get("torch_dtype"),
        max_positions=keys.integer("max_position_embeddings", 2048),
        norm_eps=keys.number("rms_norm_eps", 1e-6),
        init_std=keys.number("initializer_range", 0.02),
        rope_base=rope.number("rope_theta", keys.number("rope_theta", 10000.0)),
        rope_type=str(rope.raw.get("rope_type") or rope.raw.get("type") or "default"),
        rope_factor=rope.number("factor", 1.0) if "factor" in rope.raw else None,
        sliding_window=window,
        linear_bias=bool(raw.get("attention_bias") or raw.get("mlp_bias")),
        activation=str(raw.get("hidden_act", "silu")),
    )


@dataclass(frozen=True)
class _Keys:
    """A part of a config, read with checks."""

    raw: Mapping[str, object]
    where: str

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.raw.get(key)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"{self.where}: {key} is {value}; a positive number is needed")
        return value

    def number(self, key: str, default: float) -> float:
        value = self.raw.get(key)
        value = default if value is None else value
        if not isinstance(value, int | float):
            raise UserError(f"{self.where}: {key} is {value}; a number is needed")
        return float(value)

    def section(self, key: str) -> Mapping[str, object]:
        value = self.raw.get(key)
        return value if isinstance(value, dict) else {}
