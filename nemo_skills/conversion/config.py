"""Settings of the mains that convert between Hugging Face folders and NeMo checkpoints."""

from dataclasses import dataclass
from pathlib import Path

from nemo_skills.conversion.dtypes import parse_dtype
from nemo_skills.core.errors import require
from nemo_skills.core.hydra import MISSING, opt


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """What is converted into what."""

    input_model: str = opt(MISSING, "the model: a Hugging Face folder, a NeMo folder or a .nemo file")
    output_model: str = opt(MISSING, "where the result goes; a name that ends in .nemo makes one tar file")
    model_type: str | None = opt(None, "llama, mistral, qwen2, …; null takes what the model's config says")
    hf_model_name: str | None = opt(
        None,
        "folder or hub name: of config and tokenizer, where a NeMo model has none; of the tokenizer, to NeMo",
    )
    dtype: str | None = opt(None, "type of the result: fp32, bf16 or fp16; null keeps the type")
    processes: int | None = opt(None, "files written side by side; null depends on size and CPUs")
    max_shard_size: float = opt(5.0, "GB above which another weight file is begun")
    verify: bool = opt(False, "read the result back, compare hashes and logits, before it gets its name")

    def __post_init__(self) -> None:
        """Refuse what cannot be done."""
        require(self.max_shard_size > 0, "max_shard_size must be positive")
        require(self.processes is None or self.processes > 0, "processes must be positive")
        if self.dtype is not None:
            parse_dtype(self.dtype)
        same = Path(self.input_model).absolute() == Path(self.output_model).absolute()
        require(not same, "output_model is the same as input_model")

    @property
    def target_dtype(self) -> str | None:
        """The type to cast to, as safetensors names it."""
        return parse_dtype(self.dtype) if self.dtype else None

    @property
    def shard_bytes(self) -> int:
        """Size of a weight file above which another one is begun."""
        return int(self.max_shard_size * 1e9)
