"""Qwen 3, the dense models from 0.6B to 32B."""

from nemo_skills.training.recipes import families
from nemo_skills.training.recipes.config import Architecture, ConfigContainer
from nemo_skills.training.recipes.families import Placement, Size

SIZES = {
    "0.6b": Size(
        name="Qwen/Qwen3-0.6B",
        architecture=Architecture(
            model_type="qwen3",
            vocab_size=151936,
            hidden_size=1024,
            intermediate_size=3072,
            num_hidden_layers=28,
            num_attention_heads=16,
            num_key_value_heads=8,
            head_dim=128,
            tie_word_embeddings=True,
            max_position_embeddings=40960,
            rope_theta=1000000.0,
        ),
        full=Placement(gpus=1, micro_batch_size=8),
        dpo=Placement(gpus=1, micro_batch_size=8),
        lora=Placement(gpus=1, micro_batch_size=8),
    ),
    "1.7b": Size(
        name="Qwen/Qwen3-1.7B",
        architecture=Architecture(
            model_type="qwen3",
            vocab_size=151936,
            hidden_size=2048,
            intermediate_size=6144,
            num_hidden_layers=28,
            num_attention_heads=16,
            num_key_value_heads=8,
            head_dim=128,
            tie_word_embeddings=True,
            max_position_embeddings=40960,
            rope_theta=1000000.0,
        ),
        full=Placement(gpus=1, micro_batch_size=8),
        dpo=Placement(gpus=1, micro_batch_size=8),
        lora=Placement(gpus=1, micro_batch_size=8),
    ),
    "4b": Size(
        name="Qwen/Qwen3-4B",
        architecture=Architecture(
            model_type="qwen3",
            vocab_size=151936,
            hidden_size=2560,
            intermediate_size=9728,
            num_hidden_layers=36,
            num_attention_heads=32,
            num_key_value_heads=8,
            head_dim=128,
            tie_word_embeddings=True,
            max_position_embeddings=40960,
            rope_theta=1000000.0,
        ),
        full=Placement(gpus=8, micro_batch_size=8),
        dpo=Placement(gpus=8, micro_batch_size=8),
        lora=Placement(gpus=1, micro_batch_size=8),
    ),
    "8b": Size(
        name="Qwen/Qwen3-8B",
        architecture=Architecture(
            model_type="qwen3",
            vocab_size=151936,
            hidden_size=4096,
            intermediate_size=12288,
            num_hidden_layers=36,
            num_attention_heads=32,
            num_key_value_heads=8,
            head_dim=128,
            tie_word_embeddings=False,
            max_position_embeddings=40960,
            rope_theta=1000000.0,
        ),
        full=Placement(gpus=8, micro_batch_size=8),
        dpo=Placement(gpus=8, micro_batch_size=8),
        lora=Placement(gpus=1, micro_batch_size=8),
    ),
    "14b": Size(
        name="Qwen/Qwen3-14B",
        architecture=Architecture(
            model_type="qwen3",
            vocab_size=151936,
            hidden_size=5120,
            intermediate_size=17408,
            num_hidden_layers=40,
            num_attention_heads=40,
            num_key_value_heads=8,
            head_dim=128,
            tie_word_embeddings=False,
            max_position_embeddings=40960,
            rope_theta=1000000.0,
        ),
        full=Placement(gpus=8, micro_batch_size=8),
        dpo=Placement(gpus=8, micro_batch_size=4),
        lora=Placement(gpus=8, micro_batch_size=8),
    ),
    "32b": Size(
        name="Qwen/Qwen3-32B",
        architecture=Architecture(
            model_type="qwen3",
            vocab_size=151936,
            hidden_size=5120,
            intermediate_size=25600,
            num_hidden_layers=64,
            num_attention_heads=64,
            num_key_value_heads=8,
            head_dim=128,
            tie_word_embeddings=False,
            max_position_embeddings=40960,
            rope_theta=1000000.0,
        ),
        full=Placement(gpus=16, micro_batch_size=4),
        dpo=Placement(gpus=16, micro_batch_size=2),
        lora=Placement(gpus=8, micro_batch_size=8),
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
