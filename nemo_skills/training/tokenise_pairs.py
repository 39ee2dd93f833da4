"""From a row of preferences to the tokens of its two answers.

Rows hold `prompt` (text, taken as it is) or `messages` (and perhaps `tools`), and the answers as texts:
`chosen` and `rejected`, or `chosen_response` and `rejected_response` as NeMo-Aligner calls them.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from nemo_skills.core.errors import UserError, did_you_mean
from nemo_skills.training.tokenise import Example, check_row, tokenise

_NAMES = {"chosen": "chosen_response", "rejected": "rejected_response"}
_KEYS = ("prompt", "messages", *_NAMES, *_NAMES.values())


class Pair(NamedTuple):
    """Tokens of a prompt with either answer; the answers are what the model learns from."""

    chosen: Example
    rejected: Example


def tokenise_pair(row: Mapping[str, Any], tokenizer: Any) -> Pair:
    """Return the tokens of a row, each answer as fine-tuning would see it.

    Raises:
        UserError: the row lacks something.
    """
    return Pair(*(tokenise(answered, tokenizer) for answered in _answered(row)))


def check_pair(row: Mapping[str, Any], tokenizer: Any) -> None:
    """Find most of what `tokenise_pair` would refuse, without the time that tokens take.

    Raises:
        UserError: the row is no pair.
    """
    for answered in _answered(row):
        check_row(answered, tokenizer)


def _answered(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of fine-tuning that teach the chosen and the rejected answer."""
    return [_with_answer(row, _text(row, short, long)) for short, long in _NAMES.items()]


def _with_answer(row: Mapping[str, Any], answer: str) -> dict[str, Any]:
    """Return the row of fine-tuning that teaches this answer."""
    if row.get("messages") is None:
        return {"input": _text(row, "prompt"), "output": answer}
    messages = row["messages"]
    if (
        not isinstance(messages, list)
        or not messages
        or not all(isinstance(message, dict) for message in messages)
    ):
        raise UserError("'messages' must be a list of objects with 'role' and 'content'")
    turns = [{**message, "train": False} for message in messages]
    last = {"role": "assistant", "content": answer, "train": True}
    return {"messages": [*turns, last], "tools": row.get("tools")}


def _text(row: Mapping[str, Any], *names: str) -> str:
    found = [name for name in names if row.get(name) is not None]
    if len(found) == 1 and isinstance(row[found[0]], str):
        text: str = row[found[0]]
        return text
    if len(found) > 1:
        raise UserError(f"a row needs '{found[0]}' or '{found[1]}', not both")
    if found:
        raise UserError(f"'{found[0]}' must be a text, not {type(row[found[0]]).__name__}")
    near = next((hint for name in row if name not in _KEYS and (hint := did_you_mean(name, _KEYS))), "")
    raise UserError(
        "a row needs 'prompt' or 'messages', 'chosen' and 'rejected', but there is no "
        f"'{names[0]}'.{near} Keys of the row: {', '.join(row) or 'none'}"
    )
