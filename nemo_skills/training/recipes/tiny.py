"""A model of half a million weights that trains on a CPU within seconds: to try everything else with.

`python -m nemo_skills.examples.tiny_model --output tiny-model` makes it.
"""

from nemo_skills.training.recipes.config import Architecture, ConfigContainer, DpoConfig, ModelConfig


def sft_config() -> ConfigContainer:
    """Fine-tune on prompts and responses."""
    config = ConfigContainer(model=_model()).editable()
    config.data.train.seq_length = config.data.validation.seq_length = 1024
    config.train.train_iters = 20
    config.train.train_epochs = 1000
    config.train.global_batch_size = 8
    config.train.micro_batch_size = 4
    config.train.precision = "32"
    config.optimizer.lr = 3e-3
    config.scheduler.lr_warmup_iters = 5
    config.validation.eval_interval = 10
    config.checkpoint.save_interval = 10
    config.logger.log_dir = "tiny-run"
    return config


def pretrain_config() -> ConfigContainer:
    """Train new weights on whole texts."""
    config = sft_config()
    config.model.from_scratch = True
    return config


def lora_config() -> ConfigContainer:
    """Fine-tune adapters."""
    config = sft_config()
    config.peft.scheme = "lora"
    config.peft.dim = 8
    return config


def dpo_config() -> ConfigContainer:
    """Fine-tune on pairs of answers."""
    config = sft_config()
    config.dpo = DpoConfig()
    config.optimizer.lr = 5e-6
    return config


def _model() -> ModelConfig:
    return ModelConfig(
        restore_from_path="tiny-model",
        architecture=Architecture(
            model_type="llama",
            vocab_size=512,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
        ),
    )
