"""NeMo's `model_config.yaml`: written for a model, and read where there is nothing better."""

from collections.abc import Mapping

import yaml

from nemo_skills.conversion.dtypes import nemo_precision, torch_name
from nemo_skills.conversion.families import Family
from nemo_skills.conversion.model_config import DecoderShape, ModelConfig
from nemo_skills.core.errors import UserError

_LLAMA31_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}

_MUST_BE: Mapping[str, tuple[object, ...]] = {
    "activation": ("fast-swiglu", "swiglu", "silu"),
    "normalization": ("rmsnorm", "RMSNorm"),
    "position_embedding_type": ("rope",),
    "rotary_percentage": (1.0,),
    "rotary_interleaved": (False,),
    "layernorm_zero_centered_gamma": (False,),
    "apply_embedding_scaling": (False,),
}
"""What decides about results without leaving a trace in the tensors, and what all families here have."""

_TOKENIZER_FILES = {"model": "tokenizer.model", "vocab_file": "vocab.json", "merge_file": "merges.txt"}
_STORED = "nemo:"


def nemo_config(config: ModelConfig, family: Family, dtype: str, tokenizer: str) -> bytes:
    """Return `model_config.yaml` for a model.

    Args:
        config: The model.
        family: Its family.
        dtype: The type of its weights.
        tokenizer: Where NeMo finds the tokenizer: a folder or a name on the hub.
    """
    shape = config.shape
    content: dict[str, object] = {
        "mcore_gpt": True,
        "transformer_engine": True,
        "dist_ckpt_format": "torch_dist",
        "precision": nemo_precision(dtype),
        "num_layers": shape.layers,
        "hidden_size": shape.hidden,
        "ffn_hidden_size": shape.ffn,
        "num_attention_heads": shape.heads,
        "num_query_groups": shape.groups,
        "kv_channels": shape.head_size,
        "encoder_seq_length": config.max_positions,
        "max_position_embeddings": config.max_positions,
        "bias": False,
        "normalization": "rmsnorm",
        "layernorm_epsilon": config.norm_eps,
        "init_method_std": config.init_std,
        "activation": "fast-swiglu",
        "position_embedding_type": "rope",
        "rotary_percentage": 1.0,
        "rotary_base": config.rope_base,
        "share_embeddings_and_output_weights": shape.tied,
        "make_vocab_size_divisible_by": 128,
        "tokenizer": {"library": "huggingface", "type": tokenizer, "model": None, "use_fast": True},
        "micro_batch_size": 1,
        "global_batch_size": 1,
        "tensor_model_parallel_size": 1,
        "pipeline_model_parallel_size": 1,
        "data": {},
        "optim": {"name": "fused_adam"},
        **family.nemo_settings(config),
    }
    if config.rope_type == "linear":
        content["seq_len_interpolation_factor"] = config.rope_factor
    return yaml.safe_dump(content, sort_keys=False).encode()


def parse_nemo_config(text: bytes, model_type: str, vocab: int, where: str) -> ModelConfig:
    """Return what `model_config.yaml` says, for checkpoints that do not carry their Hugging Face config.

    Args:
        text: The file's contents.
        model_type: The family that the tensors are of.
        vocab: Rows of the embedding, where the file does not say how many of them are used.
        where: The file, for messages.

    Raises:
        UserError: it is no YAML, or a key is missing or makes no sense.
    """
    try:
        raw = yaml.safe_load(text)
        shape = DecoderShape(
            layers=int(raw["num_layers"]),
            hidden=int(raw["hidden_size"]),
            heads=int(raw["num_attention_heads"]),
            groups=int(raw.get("num_query_groups") or raw["num_attention_heads"]),
            head_size=int(raw.get("kv_channels") or raw["hidden_size"] // raw["num_attention_heads"]),
            ffn=int(raw["ffn_hidden_size"]),
            vocab=int(raw.get("override_vocab_size") or vocab),
            tied=bool(raw.get("share_embeddings_and_output_weights", True)),
        )
        _check_kind(raw, where)
        window = raw.get("window_size")
        stretch = raw.get("seq_len_interpolation_factor")
        rope = "linear" if stretch else "default"
        return ModelConfig(
            model_type=model_type,
            shape=shape,
            dtype=None,
            max_positions=int(raw.get("max_position_embeddings") or raw["encoder_seq_length"]),
            norm_eps=float(raw.get("layernorm_epsilon", 1e-5)),
            init_std=float(raw.get("init_method_std", 0.02)),
            rope_base=float(raw.get("rotary_base", 10000.0)),
            rope_type="llama3" if raw.get("scale_positional_embedding") else rope,
            rope_factor=float(stretch) if stretch else None,
            sliding_window=int(window[0]) if window and int(window[0]) > 0 else None,
            linear_bias=bool(raw.get("bias")),
            activation="silu",
        )
    except yaml.YAMLError as error:
        raise UserError(f"{where} is no YAML: {error}") from None
    except KeyError as error:
        raise UserError(f"{where}: {error.args[0]} is missing; give hf_model_name") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{where} is no model config: {error}") from None


def tokenizer_files(text: bytes) -> dict[str, str]:
    """Return the files of the tokenizer that `model_config.yaml` names: usual names to those they have."""
    section = yaml.safe_load(text).get("tokenizer")
    named = {key: str(section.get(key)) for key in _TOKENIZER_FILES} if isinstance(section, dict) else {}
    # in a packed checkpoint names begin with a hash, so that they are all different
    return {
        _TOKENIZER_FILES[key]: name.removeprefix(_STORED)
        for key, name in named.items()
        if name.startswith(_STORED)
    }


def _check_kind(raw: Mapping[str, object], where: str) -> None:
    """Refuse models whose tensors look like those of a family here, but that compute something else."""
    for key, possible in _MUST_BE.items():
        value = raw.get(key)
        if value is not None and value not in possible:
            raise UserError(f"{where}: {key}={value} is nothing that a family known here has")


def hf_config(config: ModelConfig, family: Family, dtype: str) -> Mapping[str, object]:
    """Return a `config.json` that transformers understands, for weights of a type."""
    shape = config.shape
    rope: Mapping[str, object] | None = None
    if config.rope_type == "llama3":
        rope = _LLAMA31_ROPE
    elif config.rope_type == "linear":
        rope = {"rope_type": "linear", "factor": config.rope_factor}
    return {
        "architectures": [family.architecture],
        "model_type": family.name,
        "torch_dtype": torch_name(dtype),
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.groups,
        "head_dim": shape.head_size,
        "vocab_size": shape.vocab,
        "tie_word_embeddings": shape.tied,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "initializer_range": config.init_std,
        "rope_theta": config.rope_base,
        "rope_scaling": rope,
        "sliding_window": config.sliding_window,
        "use_cache": True,
    }
