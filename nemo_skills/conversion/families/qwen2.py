"""Qwen 2 and 2.5: Llama with biases for queries, keys and values."""

from collections.abc import Mapping

from nemo_skills.conversion.families._decoder import DECODER, QKV_BIAS
from nemo_skills.conversion.families._table import Family
from nemo_skills.conversion.model_config import ModelConfig


def _settings(config: ModelConfig) -> Mapping[str, object]:
    return {"qkv_bias": True, "override_vocab_size": config.shape.vocab}


FAMILY = Family(
    name="qwen2",
    architecture="Qwen2ForCausalLM",
    aliases=("qwen", "qwen2.5"),
    rules=(*DECODER, QKV_BIAS),
    nemo_settings=_settings,
)
