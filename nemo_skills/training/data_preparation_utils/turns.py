"""What is asked in conversations: lists of messages, or of turns as in generation's multi_turn_key."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from nemo_skills.prompt.text import as_text


class Turn(NamedTuple):
    """Words of one side."""

    role: str
    text: str


def turns_of(value: Any) -> list[Turn]:
    """Return the turns of a conversation; none for a value that is no conversation."""
    if not isinstance(value, list) or not all(isinstance(entry, str | dict) for entry in value):
        return []
    return [turn for entry in value for turn in _turns_of_entry(entry)]


def first_question(value: Any) -> str | None:
    """Return what a conversation asks before its first answer; None for a value that is no conversation.

    System messages do not count: a question is the same one whatever they say.
    """
    turns = turns_of(value)
    if not turns:
        return None
    if not _is_message(value[0]):
        # the answers of such turns stand elsewhere: the first one is to the first of them
        turns = list(_turns_of_entry(value[0]))
    asked: list[str] = []
    for turn in turns:
        if turn.role == "assistant" and asked:
            break
        if turn.role == "user":
            asked.append(turn.text)
    return "\0".join(asked) or as_text(value)


def _is_message(entry: str | dict[str, Any]) -> bool:
    return isinstance(entry, dict) and "role" in entry


def _turns_of_entry(entry: str | dict[str, Any]) -> Iterator[Turn]:
    if isinstance(entry, str):
        yield Turn("user", entry)
    elif "role" in entry:
        yield Turn(str(entry["role"]), _content(entry.get("content")))
    else:
        yield from (Turn("user", text) for text in entry.values() if isinstance(text, str))


def _content(content: Any) -> str:
    """Return the text of a message, which may stand in parts beside images and the like."""
    if isinstance(content, list):
        texts = [part.get("text") if isinstance(part, dict) else part for part in content]
        return "\n".join(text for text in texts if isinstance(text, str))
    return "" if content is None else as_text(content)
