"""From a row to its prompts, and from answers to the fields of the output row."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from nemo_skills.core.errors import UserError
from nemo_skills.inference.client import Client
from nemo_skills.inference.config import GenerateConfig
from nemo_skills.inference.request import Answer, RequestFormat
from nemo_skills.prompt.utils import Prompt

Row = Mapping[str, Any]
Rendered = list[dict[str, Any]] | str


class Solved(NamedTuple):
    """The fields that answers add to a row."""

    fields: dict[str, Any]
    num_tokens: int


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """How a row is put to the model."""

    config: GenerateConfig
    prompt: Prompt
    requests: RequestFormat

    def first_prompt(self, row: Row) -> Rendered:
        """Return the first request of a row.

        Raises:
            UserError: the row lacks something.
        """
        return self.prompt.fill(self.turns(row)[0], assistant_prefix=self._prefix(row))

    def check(self, row: Row) -> None:
        """Raise a `UserError` if the row lacks something that a later turn needs."""
        if self.config.multi_turn_key:
            for turn in self.turns(row):
                self.prompt.messages(turn)

    def turns(self, row: Row) -> list[Row]:
        """Return what the prompt is filled with at each turn: one entry without multi_turn_key."""
        key = self.config.multi_turn_key
        if key is None:
            return [row]
        turns = row.get(key)
        if not isinstance(turns, list) or not turns or not all(isinstance(t, str | dict) for t in turns):
            raise UserError(
                f"'{key}' (multi_turn_key) must hold a list of turns, each a text or a set of prompt keys;"
                f" keys of the row: {', '.join(row)}"
            )
        return [{**row, **(turn if isinstance(turn, dict) else _text_turn(turn))} for turn in turns]

    async def solve(self, client: Client, row: Row, first: bytes, position: int) -> Solved:
        """Get the answers to a row, whose first prompt is already encoded."""
        started, clock = time.time(), time.perf_counter()
        answers = [await client.ask(first, position)]
        if self.config.multi_turn_key:
            answers += await self._later_turns(client, row, answers[0], position)
        fields = self._answer_fields(row, answers)
        num_tokens = sum(answer.num_tokens or 0 for answer in answers)
        if self.config.add_generation_stats:
            taken = time.perf_counter() - clock
            known = all(answer.num_tokens is not None for answer in answers)
            fields |= {
                "num_generated_tokens": num_tokens if known else None,
                "finish_reason": _finish_reason(answers),
                "generation_time": round(taken, 4),
                "generation_start_time": round(started, 4),
                "generation_end_time": round(started + taken, 4),
            }
        return Solved(fields, num_tokens)

    async def _later_turns(self, client: Client, row: Row, first: Answer, position: int) -> list[Answer]:
        turns = self.turns(row)
        answers = [first]
        history: list[dict[str, Any]] = []
        for number in range(1, len(turns)):
            history += self._said(turns[number - 1], answers[-1])
            rendered = self.prompt.fill(turns[number], history=history)
            answers.append(await client.ask(self.requests.encode(rendered), position, number))
        return answers[1:]

    def _said(self, turn: Row, answer: Answer) -> list[dict[str, Any]]:
        """Return what a turn adds to the history; reasoning is not repeated to the model."""
        messages = self.prompt.messages(turn)
        if self.config.prompt_format == "ns":
            # the prompt config puts its system message before the whole history
            messages = [message for message in messages if message.get("role") != "system"]
        text = answer.text
        if self.config.parse_reasoning:
            text = text.rpartition(self.config.end_reasoning_string)[2].strip()
        return [*messages, {"role": "assistant", "content": text}]

    def _answer_fields(self, row: Row, answers: Sequence[Answer]) -> dict[str, Any]:
        several = self.config.multi_turn_key is not None
        prefix = self._prefix(row)
        texts = [prefix + answer.text for answer in answers]
        reasonings = [answer.reasoning for answer in answers]
        fields: dict[str, Any] = {}
        if self.config.parse_reasoning:
            parts = [self._split(answer, text) for answer, text in zip(answers, texts, strict=True)]
            texts, reasonings = [part.answer for part in parts], [part.reasoning for part in parts]
            fields["_finished_reasoning"] = all(part.finished for part in parts)
        fields[self.config.generation_key] = texts if several else texts[0]
        if any(reasoning is not None for reasoning in reasonings):
            fields["_reasoning"] = reasonings if several else reasonings[0]
        tokens = [answer.tokens for answer in answers]
        if any(tokens):
            for key in ("tokens", "logprobs", "top_logprobs"):
                values = [getattr(entry, key, None) for entry in tokens]
                fields[key] = values if several else values[0]
        return fields

    def _split(self, answer: Answer, text: str) -> "_Parts":
        """Split reasoning from answer; without the end of the reasoning there is no answer."""
        if answer.reasoning is not None:
            return _Parts(answer.reasoning, text, bool(text) or answer.finish_reason != "length")
        reasoning, end, rest = text.rpartition(self.config.end_reasoning_string)
        return _Parts(reasoning, rest.strip(), True) if end else _Parts(text, "", False)

    def _prefix(self, row: Row) -> str:
        if not self.config.prefix_generation_to_response:
            return ""
        prefix = row.get(self.config.generation_key)
        if not isinstance(prefix, str):
            raise UserError(
                f"prefix_generation_to_response needs the first words in '{self.config.generation_key}';"
                f" keys of the row: {', '.join(row)}"
            )
        return prefix


class _Parts(NamedTuple):
    reasoning: str
    answer: str
    finished: bool


def _text_turn(text: str) -> dict[str, Any]:
    """Let a turn that is plain text fill any shipped prompt."""
    messages = [{"role": "user", "content": text}]
    return {"turn": text, "question": text, "problem": text, "messages": messages}


def _finish_reason(answers: Sequence[Answer]) -> str | None:
    """Return the first reason that is out of the ordinary: one cut turn makes a cut conversation."""
    reasons = [answer.finish_reason for answer in answers]
    return next((reason for reason in reasons if reason != "stop"), "stop")
