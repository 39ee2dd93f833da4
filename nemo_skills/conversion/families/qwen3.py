"""Qwen 3, dense: Llama with norms of queries and keys."""

from collections.abc import Mapping

from nemo_skills.conversion.families._decoder import DECODER, K_NORM, Q_NORM
from nemo_skills.conversion.families._table import Family
from nemo_skills.conversion.model_config import ModelConfig


def _settings(config: ModelConfig) -> Mapping[str, object]:
    # the name of Megatron-Core's switch; NeMo 1 ends before this family
    return {"qk_layernorm": True, "override_vocab_size": config.shape.vocab}


FAMILY = Family(
    name="qwen3",
    architecture="Qwen3ForCausalLM",
    aliases=("qwen",),
    rules=(*DECODER, Q_NORM, K_NORM),
    nemo_settings=_settings,
)
