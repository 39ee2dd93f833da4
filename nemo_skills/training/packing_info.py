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

    @property
    def left_out(self) -> str:
        """What is not in the packs, or not whole, in words."""
        return (
            f"{self.truncated} truncated, {self.dropped_long} too long and dropped,"
            f" {self.nothing_to_learn} without anything to learn, {self.skipped} skipped"
        )

    @classmethod
    def sum(cls, parts: Iterable[Self]) -> Self:
        """Add up."""
        listed = list(parts)
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: sum(getattr(part, name) for part in listed) for name in names})


@dataclass(frozen=True, kw_only=True)
class Fill:
    """What is in the packs, all together."""

    packs: int
    sequences: int
    inputs: int
    """Tokens that the model is given, with those of `padding`."""
    padding: int
    """Tokens that only make sequences divisible, for context parallelism."""
    pairs: int
    """Of tokens of the same pack."""
    cross_document_pairs: int
    """Of these, pairs of different sequences: what attention must not see."""

    def __add__(self, other: "Fill") -> "Fill":
        mine, theirs = dataclasses.asdict(self), dataclasses.asdict(other)
        return Fill(**{name: mine[name] + theirs[name] for name in mine})

    @property
    def sequences_per_pack(self) -> float:
        """The mean number, by which a batch of packs is larger than it looks."""
        return self.sequences / self.packs

    def efficiency(self, pack_size: int) -> float:
        """Return the share of the packs' places that is filled."""
        return self.inputs / (self.packs * pack_size)

    @property
    def cross_document_share(self) -> float:
        """Share of the pairs that are of different sequences."""
        return self.cross_document_pairs / self.pairs if self.pairs else 0.0


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
    fill: Fill

    def to_json(self) -> dict[str, Any]:
        """Return what the file holds: the fields, and what follows from them."""
        quality = {
            "efficiency": round(self.fill.efficiency(self.pack_size), 6),
            "sequences_per_pack": round(self.fill.sequences_per_pack, 4),
            "cross_document_share": round(self.fill.cross_document_share, 6),
        }
        return {**dataclasses.asdict(self), "quality": quality}

    @classmethod
    def from_json(cls, found: Mapping[str, Any], path: Path) -> Self:
        """Read the contents of a file.

        Raises:
            UserError: it is of another program or version.
        """
        try:
            nested = {"counts": Counts(**found["counts"]), "fill": Fill(**found["fill"])}
            plain = {key: value for key, value in found.items() if key != "quality"}
            return cls(**{**plain, **nested, "inputs": tuple(found["inputs"])})
        except (KeyError, TypeError) as error:
            raise UserError(f"{path} does not describe packed data: {error}.") from None


def fingerprint(parts: Sequence[object]) -> str:
    """Return a hash of anything that JSON can hold, or text."""
    return hashlib.sha256(orjson.dumps(parts, default=str, option=orjson.OPT_SORT_KEYS)).hexdigest()[:32]


def vocabulary_of(tokenizer: Any) -> tuple[str, int]:
    """Return a hash of what the numbers of a tokenizer mean, and the number above all of them."""
    tokens = tokenizer.get_vocab()
    known = fingerprint([sorted(tokens.items()), tokenizer.bos_token_id, tokenizer.eos_token_id])
    return known, max(tokens.values(), default=-1) + 1
