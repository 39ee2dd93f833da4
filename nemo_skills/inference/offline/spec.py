"""What an engine is asked and what it answers. Standard library only; everything fits into JSON."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

EngineName = Literal["hf", "vllm", "trtllm"]
DtypeName = Literal["auto", "float32", "bfloat16", "float16"]
LongPrompts = Literal["skip", "truncate_left", "truncate_right", "shorten_response", "error"]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are chosen, and when a response ends."""

    greedy: bool = False
    temperature: float = 1.0
    top_k: int = 0
    """0 is all."""
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    min_tokens: int = 0
    end_strings: tuple[str, ...] = ()
    logprobs: bool = False
    """Whether to return the log probability of every token, in the model's own distribution."""


@dataclass(frozen=True, kw_only=True)
class EngineSpec:
    """A model, an engine, and all that is the same for every row."""

    engine: EngineName
    model: str
    sampling: Sampling
    dtype: DtypeName = "auto"
    context: int | None = None
    """Most tokens of prompt and response together; None: what the model was made for."""
    max_tokens: int | None = None
    """Longest response; None: half of the context."""
    max_prompt: int | None = None
    """Longest prompt; None: what the context leaves beside the longest response."""
    long_prompts: LongPrompts = "skip"
    clean: bool = False
    """Whether special tokens and end strings are taken out of responses."""
    batch: int = 8
    """Sequences that the `hf` engine computes together."""
    tensor_parallel: int = 1
    threads: int = 1
    """Threads on a CPU. Another number may round differently."""
    args: Mapping[str, Any] = field(default_factory=dict)
    """More arguments for the engine's own constructor."""

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> "EngineSpec":
        """Read what `dataclasses.asdict` and JSON made of a spec."""
        sampling = dict(data["sampling"])
        sampling["end_strings"] = tuple(sampling["end_strings"])
        return cls(**{**data, "sampling": Sampling(**sampling)})


@dataclass(frozen=True, kw_only=True)
class Item:
    """One prompt, and a seed for each of the responses wanted."""

    prompt: str | list[dict[str, Any]]
    """A text, or messages for the model's chat template."""
    seeds: tuple[int, ...]
    bos: bool | None = None
    """Whether the prompt begins with the token for the beginning; None: as the tokenizer does it."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One response."""

    text: str
    tokens: int
    finish: str
    """`stop`, or `length` when it was cut off."""
    logprobs: tuple[float, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Result:
    """What became of an item."""

    prompt: str
    prompt_tokens: int
    """Before anything was cut off."""
    cut: int = 0
    """Tokens that were cut off the prompt."""
    longest: int | None = None
    """How long a response could be, where that is less than was wanted."""
    refused: str | None = None
    """Why there are no answers."""
    answers: tuple[Answer, ...] = ()

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> "Result":
        """Read what `dataclasses.asdict` and JSON made of a result."""
        answers = tuple(Answer(**{**a, "logprobs": _floats(a["logprobs"])}) for a in data["answers"])
        return cls(**{**data, "answers": answers})


def _floats(values: list[float] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(values)


def sample_seed(seed: int, position: int, response: int) -> int:
    """Return the seed of one response; it depends on nothing but these three numbers."""
    digest = hashlib.blake2b(f"{seed}:{position}:{response}".encode(), digest_size=8).digest()
    # engines take signed 64-bit numbers, and the kernels of some no more than 32 bits
    return int.from_bytes(digest, "big") & 0x7FFFFFFF
