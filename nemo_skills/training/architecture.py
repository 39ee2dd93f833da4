"""The shape of a model in the terms of `config.json`: enough to build it or count its weights."""

from dataclasses import dataclass
from typing import Any

from nemo_skills.core.errors import require
from nemo_skills.core.hydra import opt


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Shape of the model."""

    model_type: str = opt("llama", "family as transformers calls it: llama, qwen2, qwen3, ...")
    vocab_size: int = opt(32000, "tokens of the vocabulary")
    hidden_size: int = opt(4096, "numbers that describe a token between two layers")
    intermediate_size: int = opt(11008, "width of the feed-forward layers")
    num_hidden_layers: int = opt(32, "layers")
    num_attention_heads: int = opt(32, "attention heads")
    num_key_value_heads: int = opt(32, "heads of keys and values, each shared by several attention heads")
    head_dim: int | None = opt(None, "size of a head; null: hidden_size / num_attention_heads")
    tie_word_embeddings: bool = opt(False, "whether the head has the weights of the embeddings")
    max_position_embeddings: int = opt(4096, "longest sequence the model is made for")
    rope_theta: float = opt(10000.0, "base of the rotary positions")
    rope_scaling: dict[str, Any] | None = opt(None, "how rotary positions are stretched, as in config.json")
    rms_norm_eps: float = opt(1e-6, "added to the mean square in norms")
    initializer_range: float = opt(0.02, "standard deviation of freshly made weights")

    def __post_init__(self) -> None:
        """Check sizes."""
        sizes = "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads"
        for name in (*sizes.split(), "num_key_value_heads", "max_position_embeddings"):
            require(getattr(self, name) > 0, f"model.architecture.{name} must be positive")
        require(
            self.num_attention_heads % self.num_key_value_heads == 0,
            "model.architecture.num_attention_heads must be a multiple of num_key_value_heads",
        )

    @property
    def head_size(self) -> int:
        """Size of a head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def layer_weights(self) -> int:
        """How many weights a layer has."""
        hidden, size = self.hidden_size, self.head_size
        queries, keys = self.num_attention_heads * size, self.num_key_value_heads * size
        attention = 2 * hidden * queries + 2 * hidden * keys
        biases = queries + 2 * keys if self.model_type == "qwen2" else 0
        head_norms = 2 * size if self.model_type == "qwen3" else 0
        return attention + biases + head_norms + 3 * hidden * self.intermediate_size + 2 * hidden

    @property
    def embedding_weights(self) -> int:
        """How many weights the embeddings have, and as many the head where it has its own."""
        return self.vocab_size * self.hidden_size

    @property
    def weights(self) -> int:
        """How many weights the model has."""
        embeddings = self.embedding_weights * (1 if self.tie_word_embeddings else 2)
        return embeddings + self.num_hidden_layers * self.layer_weights + self.hidden_size
