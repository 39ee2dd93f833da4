"""Prompts from rows in the format of supervised fine-tuning."""

from collections.abc import Mapping
from typing import Any

from nemo_skills.core.errors import UserError, did_you_mean

Messages = list[dict[str, Any]]
_KEYS = ("input", "prompt", "messages", "conversations")
_ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
}


def sft_prompt(row: Mapping[str, Any], *, chat: bool) -> str | Messages:
    """Return what a row asks: the text under `input` or `prompt`, or the messages without the last answer.

    Args:
        row: with `input`, `prompt`, `messages` (role, content) or `conversations` (from, value).
        chat: Take a text for a user's message.

    Raises:
        UserError: the row has none of these, or its messages make no sense.
    """
    key = next((key for key in _KEYS if row.get(key) is not None), None)
    if key is None:
        near = next((hint for name in row if (hint := did_you_mean(name, _KEYS))), "")
        raise UserError(
            f"a row needs one of the keys {', '.join(_KEYS)}.{near}"
            f" Keys of the row: {', '.join(row) or 'none'}"
        )
    value = row[key]
    if isinstance(value, str) and key in ("input", "prompt"):
        return [{"role": "user", "content": value}] if chat else value
    if not isinstance(value, list) or not value or not all(isinstance(turn, dict) for turn in value):
        expected = "a text" if key == "input" else "a list of messages"
        raise UserError(f"'{key}' must hold {expected}")
    return _without_answer(key, _conversation(row, value) if key == "conversations" else value)


def _conversation(row: Mapping[str, Any], turns: list[dict[str, Any]]) -> Messages:
    """Return turns of `from` and `value` as messages; `mask` names the speaker who is not trained."""
    messages: Messages = []
    if isinstance(row.get("system"), str) and row["system"]:
        messages.append({"role": "system", "content": row["system"]})
    user = str(row.get("mask") or "user").lower()
    for turn in turns:
        speaker, text = turn.get("from"), turn.get("value")
        if not isinstance(speaker, str) or not isinstance(text, str):
            raise UserError("every turn of 'conversations' needs 'from' and 'value'")
        role = "user" if speaker.lower() == user else _ROLES.get(speaker.lower(), "assistant")
        messages.append({"role": role, "content": text})
    return messages


def _without_answer(key: str, messages: Messages) -> Messages:
    """Drop the answer at the end, which is what the model is to say."""
    if any("role" not in message or "content" not in message for message in messages):
        raise UserError(f"every message of '{key}' needs 'role' and 'content'")
    asked = messages[:-1] if messages[-1]["role"] == "assistant" else messages
    if not any(message["role"] == "user" for message in asked):
        raise UserError(f"'{key}' has no message of a user to answer")
    return asked
