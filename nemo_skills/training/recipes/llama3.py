"""Llama 3: of 3.2 the 1B and 3B models, of 3.1 those with 8B and 70B."""

from nemo_skills.training.recipes import families
from nemo_skills.training.recipes.config import Architecture, ConfigContainer
from nemo_skills.training.recipes.families import Placement, Size


def _scaled(factor: float) -> dict[str, float | str]:
    """Return how rotary positions are stretched."""
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


SIZES = {
    "1b": Size(
        name="meta-llama/Llama-3.2-1B",
        architecture=Architecture(
            model_type="llama",
            vocab_size=128256,
            hidden_size=2048,
            intermediate_size=8192,
            num_hidden_layers=16,
            num_attention_heads=32,
            num_key_value_heads=8,
            head_dim=64,
            tie_word_embeddings=True,
            max_position_embeddings=131072,
            rope_theta=500000.0,
            rope_scaling=_scaled(32.0),
            rms_norm_eps=1e-5,
        ),
        full=Placement(gpus=1, micro_batch_size=8),
        dpo=Placement(gpus=1, micro_batch_size=8),
        lora=Placement(gpus=1, micro_batch_size=8),
    ),
    "3b": Size(
        name="meta-llama/Llama-3.2-3B",
        architecture=Architecture(
            model_type="llama",
            vocab_size=128256,
            hidden_size=3072,
            intermediate_size=8192,
            num_hidden_layers=28,
            num_attention_heads=24,
            num_key_value_heads=8,
            head_dim=128,
            tie_word_embeddings=True,
            max_position_embeddings=131072,
            rope_theta=500000.0,
            rope_scaling=_scaled(32.0),
            rms_norm_eps=1e-5,
        ),
        full=Placement(gpus=1, micro_batch_size=2),
        dpo=Placement(gpus=8, micro_batch_size=8),
        lora=Placement(gpus=1, micro_batch_size=8),
    ),
    "8b": Size(
        name="meta-llama/Llama-3.1-8B",
        architecture=Architecture(
            model_type="llama",
            vocab_size=128256,
            hidden_size=4096,
            intermediate_size=14336,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
            head_dim=128,
            tie_word_embeddings=False,
            max_position_embeddings=131072,
            rope_theta=500000.0,
            rope_scaling=_scaled(8.0),
            rms_norm_eps=1e-5,
        ),
        full=Placement(gpus=8, micro_batch_size=8),
        dpo=Placement(gpus=8, micro_batch_size=8),
        lora=Placement(gpus=1, micro_batch_size=8),
    ),
    "70b": Size(
        name="meta-llama/Llama-3.1-70B",
        architecture=Architecture(
            model_type="llama",
            vocab_size=128256,
            hidden_size=8192,
            intermediate_size=28672,
            num_hidden_layers=80,
            num_attention_heads=64,
            num_key_value_heads=8,
            head_dim=128,
            tie_word_embeddings=False,
            max_position_embeddings=131072,
            rope_theta=500000.0,
            rope_scaling=_scaled(8.0),
            rms_norm_eps=1e-5,
        ),
        full=Placement(gpus=32, micro_batch_size=2),
        dpo=Placement(gpus=64, micro_batch_size=1),
        lora=Placement(gpus=8, micro_batch_size=2),
    ),
}


def pretrain_config(size: str = "8b") -> ConfigContainer:
    """Train new weights on whole texts."""
    return families.pretrain(SIZES[size])


def sft_config(size: str = "8b") -> ConfigContainer:
    """Fine-tune on prompts and responses."""
    return families.sft(SIZES[size])


def dpo_config(size: str = "8b") -> ConfigContainer:
    """Fine-tune on pairs of answers."""
    return families.dpo(SIZES[size])


def lora_config(size: str = "8b") -> ConfigContainer:
    """Fine-tune adapters."""
    return families.lora(SIZES[size])
