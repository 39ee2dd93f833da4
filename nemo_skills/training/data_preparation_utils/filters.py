"""Filters of single rows: verdicts, truncation, length, patterns, any expression."""

import builtins
import functools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import CodeType
from typing import Any, Literal

from nemo_skills.core.errors import UserError, did_you_mean, require
from nemo_skills.core.hydra import opt
from nemo_skills.prompt.text import as_text
from nemo_skills.training.data_preparation_utils.base import Row, RowFilter, key_text
from nemo_skills.training.data_preparation_utils.reading import graded
from nemo_skills.training.data_preparation_utils.tokens import count_tokens

_CUT = ("length", "max_tokens")
_FUNCTIONS = {
    name: getattr(builtins, name)
    for name in (
        *("abs", "all", "any", "bool", "dict", "float", "int", "isinstance", "len", "list", "max", "min"),
        *("range", "round", "set", "sorted", "str", "sum", "tuple", "zip"),
    )
}


@dataclass(frozen=True, kw_only=True)
class Verdicts(RowFilter):
    """Keeps rows with certain verdicts; wrong answers and those without an answer go."""

    keep: tuple[str, ...] = opt(("correct",), "verdicts to keep")
    verdict_key: str = opt("verdict", "key of the verdict")

    def reject(self, row: Row) -> str | None:
        """Reject by verdict, which is the reason."""
        verdict = row.get(self.verdict_key)
        if type(verdict) is not str:
            verdict = graded(row, self.verdict_key)
        return None if verdict in self.keep else verdict


@dataclass(frozen=True, kw_only=True)
class NotTruncated(RowFilter):
    """Drops generations that ended because they became too long."""

    def reject(self, row: Row) -> str | None:
        """Reject by `finish_reason`."""
        reason = row.get("finish_reason")
        cut = any(r in _CUT for r in reason) if isinstance(reason, list) else reason in _CUT
        return "truncated" if cut else None


@dataclass(frozen=True, kw_only=True)
class HasAnswer(RowFilter):
    """Drops rows in which no answer was found."""

    answer_key: str = opt("predicted_answer", "key of the answer")

    def reject(self, row: Row) -> str | None:
        """Reject rows whose answer is missing or empty."""
        return "no answer" if row.get(self.answer_key) in (None, "", []) else None


@dataclass(frozen=True, kw_only=True)
class Length(RowFilter):
    """Drops rows whose text is too short or too long."""

    fields: tuple[str, ...] = opt(("generation",), "texts that count together")
    unit: Literal["characters", "words", "tokens"] = opt("characters", "what is counted")
    at_least: int = opt(0, "shortest")
    at_most: int | None = opt(None, "longest; null: no limit")
    tokenizer: str | None = opt(None, "name or path of the tokenizer that counts tokens")

    def __post_init__(self) -> None:
        require(self.unit != "tokens" or self.tokenizer is not None, "unit=tokens needs a tokenizer")
        require(self.at_most is None or self.at_most >= self.at_least, "at_most is below at_least")

    @property
    def active(self) -> bool:
        """Whether there is a limit."""
        return self.at_least > 0 or self.at_most is not None

    def prepare(self) -> None:
        """Load the tokenizer."""
        if self.unit == "tokens":
            assert self.tokenizer is not None
            count_tokens(self.tokenizer, "")

    def reject(self, row: Row) -> str | None:
        """Reject by length."""
        length = sum(self._length(key_text(row, field)) for field in self.fields)
        if length < self.at_least:
            return "too short"
        return "too long" if self.at_most is not None and length > self.at_most else None

    def _length(self, text: str) -> int:
        if self.unit == "characters":
            return len(text)
        if self.unit == "words":
            return len(text.split())
        assert self.tokenizer is not None
        return count_tokens(self.tokenizer, text)


@dataclass(frozen=True, kw_only=True)
class Regex(RowFilter):
    """Drops rows in whose text a pattern is found, or is not found."""

    pattern: str | None = opt(None, "Python regular expression, searched anywhere; null: no filter")
    field: str = opt("generation", "the text")
    drop_if: Literal["found", "not_found"] = opt("found", "when to drop the row")
    ignore_case: bool = opt(False, "case does not count")

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern or "")
        except re.error as error:
            raise UserError(f"pattern: not a regular expression: {error}") from None

    @property
    def active(self) -> bool:
        """Whether there is a pattern."""
        return self.pattern is not None

    @functools.cached_property
    def _compiled(self) -> re.Pattern[str]:
        return re.compile(self.pattern or "", re.IGNORECASE if self.ignore_case else 0)

    def reject(self, row: Row) -> str | None:
        """Reject by the pattern."""
        found = self._compiled.search(key_text(row, self.field)) is not None
        if found is (self.drop_if == "found"):
            return "pattern found" if found else "pattern not found"
        return None


@dataclass(frozen=True, kw_only=True)
class Where(RowFilter):
    """Keeps the rows for which a Python expression is true.

    The keys of the row are its variables; `row`, `re`, `math` and simple functions (len, sum, any, …) are
    there too. It is your own code: it is not shielded from anything.
    """

    expression: str | None = opt(
        None, "such as: len(generation) < 2000 and 'As an AI' not in generation; null: no filter"
    )

    def __post_init__(self) -> None:
        try:
            _ = self._code
        except SyntaxError as error:
            raise UserError(f"expression: {error.msg}: {self.expression}") from None

    @property
    def active(self) -> bool:
        """Whether there is an expression."""
        return self.expression is not None

    @functools.cached_property
    def _code(self) -> CodeType:
        return compile((self.expression or "True").strip(), "<expression>", "eval")

    def reject(self, row: Row) -> str | None:
        """Reject rows for which the expression is not true."""
        names: Mapping[str, Any] = {**_FUNCTIONS, "re": re, "math": math, **row, "row": row}
        try:
            kept = eval(self._code, {"__builtins__": {}, **names})  # noqa: S307 (the user's own code)
        except NameError as error:
            name = error.name or ""
            raise UserError(f"{self.expression}: no '{name}' in the row.{did_you_mean(name, row)}") from None
        except Exception as error:
            raise UserError(f"{self.expression}: {type(error).__name__}: {error}") from None
        return None if kept else "condition not met"


@dataclass(frozen=True, kw_only=True)
class Repetition(RowFilter):
    """Drops generations that repeat themselves: too many of their word sequences are not new."""

    field: str = opt("generation", "the text")
    words: int = opt(8, "length of the sequences")
    at_most: float = opt(0.5, "largest share of sequences that were there before")

    def reject(self, row: Row) -> str | None:
        """Reject by the share of repeated sequences."""
        parts = as_text(row.get(self.field)).split()
        total = len(parts) - self.words + 1
        if total <= self.words:
            return None
        distinct = len({tuple(parts[i : i + self.words]) for i in range(total)})
        return "repeats itself" if 1 - distinct / total > self.at_most else None
