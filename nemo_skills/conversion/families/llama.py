"""Llama 2, 3, 3.1, 3.2 and 3.3."""

from collections.abc import Mapping

from nemo_skills.conversion.families._decoder import DECODER
from nemo_skills.conversion.families._table import Family
from nemo_skills.conversion.model_config import ModelConfig


def _settings(config: ModelConfig) -> Mapping[str, object]:
    # NeMo 1 has the factors of Llama 3.1 built in, and only a switch for them
    return {"scale_positional_embedding": True} if config.rope_type == "llama3" else {}


FAMILY = Family(
    name="llama",
    architecture="LlamaForCausalLM",
    aliases=("llama2", "llama3", "llama3.1", "llama3.2", "llama3.3"),
    rules=DECODER,
    nemo_settings=_settings,
)
