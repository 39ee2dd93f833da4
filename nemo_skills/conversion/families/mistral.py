"""Mistral 7B and Nemo: Llama's tensors, and an attention window in the first versions."""

from collections.abc import Mapping

from nemo_skills.conversion.families._decoder import DECODER
from nemo_skills.conversion.families._table import Family
from nemo_skills.conversion.model_config import ModelConfig


def _settings(config: ModelConfig) -> Mapping[str, object]:
    return {"window_size": [config.sliding_window, 0]} if config.sliding_window else {}


FAMILY = Family(
    name="mistral",
    architecture="MistralForCausalLM",
    rules=DECODER,
    nemo_settings=_settings,
)
