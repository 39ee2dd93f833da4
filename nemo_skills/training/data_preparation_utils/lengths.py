"""How long the rows of the output are."""

from typing import Any

from nemo_skills.training.data_preparation_utils.base import Row
from nemo_skills.training.data_preparation_utils.stats import Tally

_TEXTS = ("input", "output", "prompt", "chosen", "rejected", "chosen_response", "rejected_response")


def note_lengths(tally: Tally, row: Row) -> None:
    """Count the lengths of a row's texts, in characters, and of its answer in tokens where they are known."""
    for key in _TEXTS:
        value = row.get(key)
        if type(value) is str:
            tally.note_length(f"{key} (characters)", len(value))
    messages = row.get("messages")
    if isinstance(messages, list):
        trained = [m for m in messages if isinstance(m, dict) and m.get("train")]
        tally.note_length("messages", len(messages))
        tally.note_length("trained turns (characters)", sum(map(_content_length, trained)))
    tokens = row.get("num_generated_tokens")
    if type(tokens) is int:
        tally.note_length("generation (tokens)", tokens)


def _content_length(message: dict[str, Any]) -> int:
    content = message.get("content")
    return len(content) if isinstance(content, str) else 0
