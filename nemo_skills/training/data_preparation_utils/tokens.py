"""Counting tokens with a Hugging Face tokenizer."""

import functools
from typing import Any

from nemo_skills.prompt.render import load_tokenizer


def count_tokens(tokenizer: str, text: str) -> int:
    """Return how many tokens a text has, without special ones."""
    return len(_loaded(tokenizer)(text, add_special_tokens=False)["input_ids"])


@functools.cache
def _loaded(path: str) -> Any:
    return load_tokenizer(path)
