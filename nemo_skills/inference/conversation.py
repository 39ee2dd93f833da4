"""From a row to its prompts, and from answers to the fields of the output row."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from nemo_skills.core.errors import UserError
from nemo_skills.inference.client import Client
from nemo_skills.inference.code_tools import CodeCounts, CodeTools
from nemo_skills.inference.config import GenerateConfig
from nemo_skills.inference.overflow import CutStrategy, Overflow, cut, text_length
from nemo_skills.inference.request import Answer, Reply, RequestFormat
from nemo_skills.inference.retry import Kind, RowFailedError
from nemo_skills.prompt.utils import Prompt

_CUTS = 24
Row = Mapping[str, Any]
Rendered = list[dict[str, Any]] | str


class Question(NamedTuple):
    """A turn of a row, ready to be asked."""

    turn: Row
    prompt: bytes
    place: tuple[int, int]
    """Position of the row and number of the turn."""
    history: tuple[dict[str, Any], ...] = ()


class Asked(NamedTuple):
    """What came of a question."""

    answers: tuple[Answer, ...]
    num_tokens: int | None
    cut: dict[str, Any] | None = None
    """What had to be left out to fit the model's context."""
    code: CodeCounts | None = None
    """What was run of its code."""


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
    tools: CodeTools | None = None

    @cached_property
    def _plain(self) -> bool:
        """Whether an answer is a text and nothing is done to it."""
        config = self.config
        special = (config.multi_turn_key, config.prefix_generation_to_response, config.parse_reasoning)
        return config.inference.n == 1 and not any(special)

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
        config = self.config
        asked = [await self._ask(client, Question(row, first, (position, 0)))]
        if config.multi_turn_key:
            asked += await self._later_turns(client, row, asked[0].answers[0], position)
        answers = asked[0].answers if len(asked) == 1 else tuple(turn.answers[0] for turn in asked)
        fields = self._answer_fields(row, answers)
        if any(turn.cut for turn in asked):
            cuts = [turn.cut for turn in asked]
            fields["context_cut"] = cuts if config.multi_turn_key else cuts[0]
        fields |= CodeCounts.total(turn.code for turn in asked if turn.code)
        num_tokens = _total([turn.num_tokens for turn in asked])
        if config.add_generation_stats:
            taken = time.perf_counter() - clock
            fields["num_generated_tokens"] = num_tokens
            fields["finish_reason"] = (
                _finish_reason(answers) if config.inference.n == 1 else [a.finish_reason for a in answers]
            )
            fields["generation_time"] = round(taken, 4)
            fields["generation_start_time"] = round(started, 4)
            fields["generation_end_time"] = round(started + taken, 4)
        return Solved(fields, num_tokens or 0)

    async def _later_turns(self, client: Client, row: Row, first: Answer, position: int) -> list["Asked"]:
        turns = self.turns(row)
        asked: list[Asked] = []
        last, history = first, list[dict[str, Any]]()
        for number in range(1, len(turns)):
            history = [*history, *self._said(turns[number - 1], last)]
            prompt = self.requests.encode(self.prompt.fill(turns[number], history=history))
            question = Question(turns[number], prompt, (position, number), tuple(history))
            asked.append(await self._ask(client, question))
            last = asked[-1].answers[0]
        return asked

    async def _ask(self, client: Client, question: "Question") -> "Asked":
        """Ask, and have the model's code run, if that is wanted."""
        asked, prompt = await self._begin(client, question)
        if self.tools is None:
            return asked
        first = Reply(asked.answers, 0, asked.num_tokens)

        async def go_on(text: str, max_tokens: int) -> Reply:
            return await client.ask(self.requests.encode_continued(prompt, text), question.place, max_tokens)

        reply, counts = await self.tools.complete(first, go_on)
        return asked._replace(answers=reply.answers, num_tokens=reply.num_tokens, code=counts)

    async def _begin(self, client: Client, question: "Question") -> tuple["Asked", bytes]:
        """Ask, and where the context is too short for it, less of it, if that is wanted."""
        try:
            reply = await client.ask(question.prompt, question.place)
            return Asked(reply.answers, reply.num_tokens), question.prompt
        except RowFailedError as error:
            strategy = self.config.server.context_limit_retry_strategy
            if error.kind is not Kind.context_length or strategy is None:
                raise
            return await self._ask_less(client, question, error, strategy)

    async def _ask_less(
        self, client: Client, question: "Question", error: RowFailedError, strategy: CutStrategy
    ) -> tuple["Asked", bytes]:
        wanted = longest = self.config.inference.tokens_to_generate
        prefix = self._prefix(question.turn)
        messages = self.prompt.messages(question.turn, question.history)
        whole = kept = text_length(messages)
        for _ in range(_CUTS):
            overflow = Overflow.read(str(error))
            if strategy is CutStrategy.reduce_generation:
                longest = overflow.shorter_answer(longest)
            else:
                kept = int(kept * overflow.keep_share(kept, longest))
            if longest < 1 or kept < 1:
                break
            prompt = question.prompt
            if kept < whole:
                from_start = strategy is CutStrategy.reduce_prompt_from_start
                shorter = cut(messages, whole - kept, from_start=from_start)
                prompt = self.requests.encode(self.prompt.render(shorter, prefix))
            try:
                reply = await client.ask(prompt, question.place, longest if longest < wanted else None)
            except RowFailedError as again:
                if again.kind is not Kind.context_length:
                    raise
                error = again
                continue
            lost = {"tokens_to_generate": longest} if longest < wanted else {"characters_cut": whole - kept}
            return Asked(reply.answers, reply.num_tokens, {"strategy": strategy.value, **lost}), prompt
        raise RowFailedError(
            Kind.context_length, f"{error} (nothing left to cut by {strategy.value})", error.attempts
        )

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
        config = self.config
        if self._plain and answers[0].reasoning is None and answers[0].tokens is None:
            return {config.generation_key: answers[0].text}
        several = config.multi_turn_key is not None or config.inference.n > 1
        prefix = self._prefix(row)
        texts = [prefix + answer.text for answer in answers]
        reasonings = [answer.reasoning for answer in answers]
        fields: dict[str, Any] = {}
        if config.parse_reasoning:
            parts = [self._split(answer, text) for answer, text in zip(answers, texts, strict=True)]
            texts, reasonings = [part.answer for part in parts], [part.reasoning for part in parts]
            finished = [part.finished for part in parts]
            fields["_finished_reasoning"] = finished if config.inference.n > 1 else all(finished)
        fields[config.generation_key] = texts if several else texts[0]
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


def _total(counts: Sequence[int | None]) -> int | None:
    return None if None in counts else sum(count or 0 for count in counts)


def _finish_reason(answers: Sequence[Answer]) -> str | None:
    """Return the first reason that is out of the ordinary: one cut turn makes a cut conversation."""
    reasons = [answer.finish_reason for answer in answers]
    return next((reason for reason in reasons if reason != "stop"), "stop")
