"""What packed files were made of and how good they are: the contents of `<prefix>.json`."""

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import orjson

from nemo_skills.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What became of the rows: `rows` is the sum of the four after it, without `truncated`."""

    rows: int = 0
    """In the input."""
    skipped: int = 0
    """Not usable, with on_bad_row=skip."""
    dropped_long: int = 0
    """Over max_seq_length, with long_sequences=drop."""
    nothing_to_learn: int = 0
    """Left out because no token of the response was there, or remained."""
    sequences: int = 0
    """In the packs."""
    truncated: int = 0
    """Of the sequences: cut to max_seq_length."""
    tokens: int = 0
    """That the model is given, without padding."""
    trained_tokens: int = 0
    """That the model learns to say."""

    @classmethod
    def sum(cls, parts: Iterable[Self]) -> Self:
        """Add up."""
        listed = list(parts)
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: sum(getattr(part, name) for part in listed) for name in names})


@dataclass(frozen=True, kw_only=True)
class Quality:
    """How well the sequences fill the packs."""

    packs: int
    efficiency: float
    """Share of the packs' places that sequences fill, padding for context parallelism included."""
    sequences_per_pack: float
    context_parallel_padding: int
    """Tokens that only make sequences divisible."""
    cross_document_pairs: float
    """Share of the token pairs of the packs, each with one before it, that are of different sequences: what
    attention must not see."""


@dataclass(frozen=True, kw_only=True)
class PackingInfo:
    """How packed files were made."""

    pack_size: int
    context_parallel_size: int
    seed: int
    packing_algorithm: str
    tokenizer: str
    vocabulary: str
    """Hash of all tokens and their numbers."""
    vocabulary_size: int
    inputs: tuple[str, ...]
    fingerprint: str
    """Hash of the settings, and of names, sizes and times of the inputs."""
    counts: Counts
    quality: Quality

    def to_json(self) -> dict[str, Any]:
        """Return what the file holds."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, found: Mapping[str, Any], path: Path) -> Self:
        """Read the contents of a file.

        Raises:
            UserError: it is of another program or version.
        """
        try:
            nested = {"counts": Counts(**found["counts"]), "quality": Quality(**found["quality"])}
            return cls(**{**found, **nested, "inputs": tuple(found["inputs"])})
        except (KeyError, TypeError) as error:
            raise UserError(f"{path} does not describe packed data: {error}.") from None


def fingerprint(parts: Sequence[object]) -> str:
    """Return a hash of anything that JSON can hold, or text."""
    return hashlib.sha256(orjson.dumps(parts, default=str, option=orjson.OPT_SORT_KEYS)).hexdigest()[:32]


def vocabulary_fingerprint(tokenizer: Any) -> str:
    """Return a hash of what the numbers of a tokenizer mean."""
    return fingerprint(
        [sorted(tokenizer.get_vocab().items()), tokenizer.bos_token_id, tokenizer.eos_token_id]
    )
