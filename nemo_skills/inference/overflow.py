"""Prompts that do not fit the model's context: what the server says of them, and what can be cut."""

import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, NamedTuple

_LIMIT = re.compile(
    r"(?:maximum (?:context|model|sequence|input) length|context length|context window"
    r"|max_seq_len|max_model_len)[^\d.]{0,24}?(\d+)",
    re.IGNORECASE,
)
_PROMPT = re.compile(
    r"(?:contains|request has|prompt has)(?P<least> at least)? (?P<a>\d+)(?: input)? tokens"
    r"|(?P<b>\d+) (?:tokens from the input|in the messages|in the prompt|in your prompt)"
    r"|(?:prompt|input)\D{0,12}\((?:length )?(?P<c>\d+)",
    re.IGNORECASE,
)
_CHARACTERS_PER_TOKEN = 3.0
_GENTLE, _MARGIN = 0.85, 0.97


class CutStrategy(StrEnum):
    """What gives way when prompt and answer together exceed the context."""

    reduce_generation = "reduce_generation"
    reduce_prompt_from_start = "reduce_prompt_from_start"
    reduce_prompt_from_end = "reduce_prompt_from_end"


class Overflow(NamedTuple):
    """What a server says of a prompt that does not fit; None where it does not say."""

    limit: int | None
    prompt_tokens: int | None
    exact: bool = True
    """False: the prompt may have more tokens than that."""

    @classmethod
    def read(cls, message: str) -> "Overflow":
        """Find the numbers in an error message; every kind of server words it in its own way."""
        limit, prompt = _LIMIT.search(message), _PROMPT.search(message)
        if prompt is None:
            return cls(int(limit[1]) if limit else None, None)
        tokens = next(int(prompt[name]) for name in "abc" if prompt[name])
        exact = prompt["least"] is None
        return cls(int(limit[1]) if limit else None, tokens, exact)

    def shorter_answer(self, wanted: int) -> int:
        """Return how long the answer may be at most; 0 when there is no room for any."""
        if self.limit is None or self.prompt_tokens is None:
            return min(wanted // 2, (self.limit or wanted) - 1)
        room = self.limit - self.prompt_tokens
        return room if room < wanted else wanted // 2

    def keep_share(self, characters: int, answer_tokens: int) -> float:
        """Return which share of a prompt of so many characters to keep; 0 when no prompt fits."""
        if self.limit is None:
            return _GENTLE
        room = self.limit - answer_tokens
        if room <= 0:
            return 0.0
        if self.prompt_tokens is not None and self.exact:
            return min(_MARGIN * room / self.prompt_tokens, _MARGIN)
        # a server that stops counting at its limit leaves only the length to go by
        guess = characters / _CHARACTERS_PER_TOKEN
        return min(room / guess if guess else 0.0, _GENTLE)


def text_length(messages: Sequence[Mapping[str, Any]]) -> int:
    """Return the number of characters that could be cut."""
    return sum(len(m["content"]) for m in messages if _can_be_cut(m))


def cut(messages: Sequence[Mapping[str, Any]], characters: int, *, from_start: bool) -> list[dict[str, Any]]:
    """Return messages without so many characters at the start or end of the conversation.

    The system message stays whole; a message of which nothing is left goes, except the last one.
    """
    order = range(len(messages)) if from_start else range(len(messages) - 1, -1, -1)
    kept = {i: dict(message) for i, message in enumerate(messages)}
    for i in order:
        if characters <= 0:
            break
        if not _can_be_cut(messages[i]):
            continue
        text = kept[i]["content"]
        taken = min(characters, len(text))
        characters -= taken
        kept[i]["content"] = text[taken:] if from_start else text[: len(text) - taken]
        if taken == len(text) and i != len(messages) - 1:
            del kept[i]
    return list(kept.values())


def _can_be_cut(message: Mapping[str, Any]) -> bool:
    return message.get("role") != "system" and isinstance(message.get("content"), str)
