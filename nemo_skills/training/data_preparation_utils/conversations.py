"""Conversations of several turns, with tools if need be: which turns are trained."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from nemo_skills.core.errors import UserError, did_you_mean
from nemo_skills.core.hydra import opt
from nemo_skills.prompt.text import as_text
from nemo_skills.training.data_preparation_utils.base import DropRow, Row, RowMap
from nemo_skills.training.data_preparation_utils.formatting import KEPT, PromptOptions

_ROLES = ("system", "developer", "user", "assistant", "tool")
Message = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class FormatMessages(PromptOptions, RowMap):
    """Writes `messages`, in which every turn says whether it is trained (`train`).

    Takes rows with ready `messages` (tool calls and `tools` too), to which `generation` is added where they
    do not end with an answer; or, with `turns_key`, rows with a list of turns and a list of answers.
    """

    generation_key: str = opt("generation", "the answer, or with turns_key the list of answers")
    turns_key: str | None = opt(None, "key of a list of turns, as in generation's multi_turn_key")
    train_on: Literal["all", "last"] = opt("all", "answers to train, where a turn does not say it itself")
    keep: tuple[str, ...] = opt((*KEPT, "tools"), "keys of the row to keep beside")

    def prepare(self) -> None:
        """Read the prompt, if one is needed."""
        if self.turns_key is not None:
            _ = self.prompt

    def change(self, row: Row) -> Row:
        """Return the training row."""
        messages = self._ready(row) if self.turns_key is None else self._asked(row, self.turns_key)
        kept = {key: row[key] for key in self.keep if key in row}
        return {"messages": marked(messages, self.train_on), **kept}

    def _ready(self, row: Row) -> list[Message]:
        given = row.get("messages")
        if not isinstance(given, list) or not given:
            raise UserError(f"the row has no list of 'messages'.{did_you_mean('messages', row)}")
        messages = [checked(message, number) for number, message in enumerate(given, start=1)]
        answer = row.get(self.generation_key)
        if messages[-1]["role"] == "assistant":
            return messages
        if answer in (None, ""):
            raise DropRow("no answer at the end")
        return [*messages, {"role": "assistant", "content": as_text(answer)}]

    def _asked(self, row: Row, key: str) -> list[Message]:
        turns, answers = row.get(key), row.get(self.generation_key)
        if not isinstance(turns, list) or not isinstance(answers, list) or not turns:
            raise UserError(f"'{key}' and '{self.generation_key}' must be lists: turns and their answers")
        if len(turns) != len(answers) or not all(isinstance(a, str) and a for a in answers):
            raise DropRow("a turn has no answer")
        messages: list[Message] = []
        for turn, answer in zip(turns, answers, strict=True):
            values = turn if isinstance(turn, dict) else {"turn": turn, "problem": turn, "question": turn}
            history = [m for m in messages if m["role"] != "system"]
            asked = self.prompt.messages({**row, **values}, history)
            messages = [*asked, {"role": "assistant", "content": answer}]
        return messages


def checked(message: object, number: int) -> Message:
    """Return a message if it is one.

    Raises:
        UserError: it has another role, or no content.
    """
    if not isinstance(message, dict):
        raise UserError(f"message {number} is no object")
    role = message.get("role")
    if role not in _ROLES:
        raise UserError(f"message {number}: unknown role {role!r}.{did_you_mean(str(role), _ROLES)}")
    calls = message.get("tool_calls")
    if calls is not None and not _are_calls(calls):
        raise UserError(f"message {number}: tool_calls must be a list of functions with name and arguments")
    if message.get("content") is None and not calls:
        raise UserError(f"message {number} ({role}) has neither content nor tool_calls")
    if "train" in message and not isinstance(message["train"], bool):
        raise UserError(f"message {number}: train must be true or false")
    return message


def _are_calls(calls: object) -> bool:
    if not isinstance(calls, list):
        return False
    functions = [call.get("function", call) if isinstance(call, dict) else None for call in calls]
    return all(isinstance(f, dict) and isinstance(f.get("name"), str) for f in functions)


def marked(messages: Sequence[Message], train_on: Literal["all", "last"]) -> list[Message]:
    """Return the messages, each with `train`: never for others' words, and as told where a turn tells it.

    Raises:
        DropRow: nothing would be trained.
    """
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    trained = set(answers if train_on == "all" else answers[-1:])
    made = [
        {**message, "train": i in answers and bool(message.get("train", i in trained))}
        for i, message in enumerate(messages)
    ]
    if not any(message["train"] for message in made):
        raise DropRow("no turn to train")
    return made
