"""How long the rows of the output are."""

from collections.abc import Sequence
from typing import Any

from nemo_skills.training.data_preparation_utils.base import Row
from nemo_skills.training.data_preparation_utils.stats import Tally

_TEXTS = ("input", "output", "prompt", "chosen", "rejected", "chosen_response", "rejected_response")


def note_lengths(tally: Tally, rows: Sequence[Row]) -> None:
    """Count the lengths of texts, in characters, and of answers in tokens where they are known."""
    for key in _TEXTS:
        texts = [row[key] for row in rows if key in row]
        tally.note_lengths(f"{key} (characters)", [len(text) for text in texts if type(text) is str])
    tokens = [row["num_generated_tokens"] for row in rows if "num_generated_tokens" in row]
    tally.note_lengths("generation (tokens)", [number for number in tokens if type(number) is int])
    lists = [row["messages"] for row in rows if "messages" in row]
    conversations = [messages for messages in lists if isinstance(messages, list)]
    tally.note_lengths("messages", list(map(len, conversations)))
    trained = [sum(_length(m) for m in messages if m.get("train")) for messages in conversations]
    tally.note_lengths("trained turns (characters)", trained)


def _length(message: dict[str, Any]) -> int:
    content = message.get("content")
    return len(content) if isinstance(content, str) else 0
