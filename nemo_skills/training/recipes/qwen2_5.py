"""Qwen 2.5, from 0.5B to 32B."""

from nemo_skills.training.recipes import families
from nemo_skills.training.recipes.config import Architecture, ConfigContainer
from nemo_skills.training.recipes.families import Placement, Size

SIZES = {
    "0.5b": Size(
        name="Qwen/Qwen2.5-0.5B",
        architecture=Architecture(
            model_type="qwen2",
            vocab_size=151936,
            hidden_size=896,
            intermediate_size=4864,
            num_hidden_layers=24,
            num_attention_heads=14,
            num_key_value_heads=2,
            tie_word_embeddings=True,
            max_position_embeddings=32768,
            rope_theta=1000000.0,
        ),
        full=Placement(gpus=1, micro_batch_size=8),
        dpo=Placement(gpus=1, micro_batch_size=8),
        lora=Placement(gpus=1, micro_batch_size=8),
    ),
    "1.5b": Size(
        name="Qwen/Qwen2.5-1.5B",
        architecture=Architecture(
            model_type="qwen2",
            vocab_size=151936,
            hidden_size=1536,
            intermediate_size=8960,
            num_hidden_layers=28,
            num_attention_heads=12,
            num_key_value_heads=2,
            tie_word_embeddings=True,
            max_position_embeddings=131072,
            rope_theta=1000000.0,
        ),
        full=Placement(gpus=1, micro_batch_size=8),
        dpo=Placement(gpus=1, micro_batch_size=8),
        lora=Placement(gpus=1, micro_batch_size=8),
    ),
    "3b": Size(
        name="Qwen/Qwen2.5-3B",
        architecture=Architecture(
            model_type="qwen2",
            vocab_size=151936,
            hidden_size=2048,
            intermediate_size=11008,
            num_hidden_layers=36,
            num_attention_heads=16,
            num_key_value_heads=2,
            tie_word_embeddings=True,
            max_position_embeddings=32768,
            rope_theta=1000000.0,
        ),
        full=Placement(gpus=1, micro_batch_size=4),
        dpo=Placement(gpus=8, micro_batch_size=8),
        lora=Placement(gpus=1, micro_batch_size=8),
    ),
    "7b": Size(
        name="Qwen/Qwen2.5-7B",
        architecture=Architecture(
            model_type="qwen2",
            vocab_size=152064,
            hidden_size=3584,
            intermediate_size=18944,
            num_hidden_layers=28,
            num_attention_heads=28,
            num_key_value_heads=4,
            tie_word_embeddings=False,
            max_position_embeddings=131072,
            rope_theta=1000000.0,
        ),
        full=Placement(gpus=8, micro_batch_size=8),
        dpo=Placement(gpus=8, micro_batch_size=8),
        lora=Placement(gpus=1, micro_batch_size=8),
    ),
    "14b": Size(
        name="Qwen/Qwen2.5-14B",
        architecture=Architecture(
            model_type="qwen2",
            vocab_size=152064,
            hidden_size=5120,
            intermediate_size=13824,
            num_hidden_layers=48,
            num_attention_heads=40,
            num_key_value_heads=8,
            tie_word_embeddings=False,
            max_position_embeddings=131072,
            rope_theta=1000000.0,
            rms_norm_eps=1e-5,
        ),
        full=Placement(gpus=8, micro_batch_size=8),
        dpo=Placement(gpus=8, micro_batch_size=4),
        lora=Placement(gpus=8, micro_batch_size=8),
    ),
    "32b": Size(
        name="Qwen/Qwen2.5-32B",
        architecture=Architecture(
            model_type="qwen2",
            vocab_size=152064,
            hidden_size=5120,
            intermediate_size=27648,
            num_hidden_layers=64,
            num_attention_heads=40,
            num_key_value_heads=8,
            tie_word_embeddings=False,
            max_position_embeddings=131072,
            rope_theta=1000000.0,
            rms_norm_eps=1e-5,
        ),
        full=Placement(gpus=16, micro_batch_size=4),
        dpo=Placement(gpus=16, micro_batch_size=2),
        lora=Placement(gpus=8, micro_batch_size=8),
    ),
}


def pretrain_config(size: str = "7b") -> ConfigContainer:
    """Train new weights on whole texts."""
    return families.pretrain(SIZES[size])


def sft_config(size: str = "7b") -> ConfigContainer:
    """Fine-tune on prompts and responses."""
    return families.sft(SIZES[size])


def dpo_config(size: str = "7b") -> ConfigContainer:
    """Fine-tune on pairs of answers."""
    return families.dpo(SIZES[size])


def lora_config(size: str = "7b") -> ConfigContainer:
    """Fine-tune adapters."""
    return families.lora(SIZES[size])
