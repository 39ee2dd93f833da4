"""What a table of a family consists of: rules that say which tensors correspond, row by row."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from nemo_skills.conversion.model_config import Axis, DecoderShape, ModelConfig


@dataclass(frozen=True)
class HFTensor:
    """A tensor of a Hugging Face model; `{layer}` in its name stands for the number of a layer."""

    name: str
    axes: tuple[Axis, ...]

    def shape(self, of: DecoderShape) -> tuple[int, ...]:
        """Return its shape in a model."""
        return tuple(of.length(axis) for axis in self.axes)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A tensor of NeMo, and the tensors of Hugging Face that it holds."""

    nemo: str
    """Its key without prefix; per layer, `decoder.layers.` stands before it, and layers are stacked."""
    hf: tuple[HFTensor, ...]
    how: Literal["concat", "interleave"] = "concat"
    """One tensor after the other; or query, key and value rows of each group of heads."""
    others: tuple[str, ...] = ()
    """Other names that are read too."""
    when: Callable[[DecoderShape], bool] = field(default=lambda _: True)
    """Which models have it."""

    @property
    def per_layer(self) -> bool:
        """Whether each layer has one."""
        return "{layer}" in self.hf[0].name


def no_settings(config: ModelConfig) -> Mapping[str, object]:
    """Return what a plain model needs in `model_config.yaml` beside the keys that all have."""
    del config
    return {}


@dataclass(frozen=True, kw_only=True)
class Family:
    """Models with the same tensors and the same class in transformers."""

    name: str
    """`model_type` in config.json."""
    architecture: str
    """The class in transformers."""
    aliases: tuple[str, ...] = ()
    """What users may call it as well."""
    rules: tuple[Rule, ...]
    nemo_settings: Callable[[ModelConfig], Mapping[str, object]] = no_settings
    """More keys for NeMo's `model_config.yaml`."""
    ignored: tuple[str, ...] = (r".*\.rotary_emb\.inv_freq",)
    """Patterns of tensors that old files hold and that can be computed."""
