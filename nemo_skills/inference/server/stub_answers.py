"""What the stub server says: the same words for the same question, in the shape of OpenAI's API."""

import random
import re
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_VOCABULARY = (
    "first second then because total number each left right sum half twice apples minutes we add take divide"
    " multiply count so check therefore equals answer gives more less remaining cost price"
)
WORDS = tuple(_VOCABULARY.split())
_CHARACTERS_PER_TOKEN = 4
_LOGPROB = -0.25


class BadRequest(Exception):
    """The client's mistake: `status` and the error body's fields."""

    def __init__(self, message: str, *, status: int = 400, kind: str = "BadRequestError") -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind


@dataclass(frozen=True)
class Answer:
    """One choice of a response."""

    tokens: tuple[str, ...]
    finish_reason: str
    stop_reason: str | None = None
    """The stop phrase that ended it."""

    @property
    def text(self) -> str:
        """The answer's text."""
        return "".join(self.tokens)


@dataclass(frozen=True, kw_only=True)
class Request:
    """The parts of a request that the stub honours."""

    chat: bool
    prompts: tuple[str, ...]
    n: int
    max_tokens: int | None
    temperature: float
    seed: int
    stop: tuple[str, ...]
    ignore_eos: bool
    stream: bool
    stream_usage: bool
    top_logprobs: int | None
    """None: no log probabilities wanted."""

    @classmethod
    def parse(cls, body: Mapping[str, Any], *, chat: bool) -> "Request":
        """Read the body of a request.

        Raises:
            BadRequest: a field is missing or has the wrong type.
        """
        try:
            limit = body.get("max_completion_tokens") or body.get("max_tokens")
            if limit is None and not chat:
                limit = body.get("max_tokens", 16)
            logprobs = body.get("logprobs")
            if chat:
                logprobs = int(body.get("top_logprobs") or 0) if logprobs else None
            stop = body.get("stop") or ()
            return cls(
                chat=chat,
                prompts=(_chat_text(body["messages"]),) if chat else _prompts(body["prompt"]),
                n=int(body.get("n") or 1),
                max_tokens=None if limit is None else int(limit),
                temperature=1.0 if body.get("temperature") is None else float(body["temperature"]),
                seed=int(body.get("seed") or 0),
                stop=(stop,) if isinstance(stop, str) else tuple(map(str, stop)),
                ignore_eos=bool(body.get("ignore_eos")),
                stream=bool(body.get("stream")),
                stream_usage=bool((body.get("stream_options") or {}).get("include_usage")),
                top_logprobs=None if logprobs is None or logprobs is False else int(logprobs),
            )
        except KeyError as err:
            raise BadRequest(f"field required: {err.args[0]}") from err
        except (TypeError, ValueError, AttributeError) as err:
            raise BadRequest(f"malformed request: {err}") from err


def _chat_text(messages: Sequence[Mapping[str, Any]]) -> str:
    if not messages:
        raise BadRequest("messages must not be empty")
    parts = []
    for message in messages:
        content = message.get("content") or ""
        if not isinstance(content, str):
            content = "".join(part.get("text", "") for part in content)
        parts.append(f"{message['role']}: {content}")
    return "\n".join(parts)


def _prompts(prompt: str | Sequence[Any]) -> tuple[str, ...]:
    if isinstance(prompt, str):
        return (prompt,)
    if prompt and isinstance(prompt[0], int):  # token ids
        return (" ".join(map(str, prompt)),)
    return tuple(p if isinstance(p, str) else " ".join(map(str, p)) for p in prompt)


def count_tokens(text: str) -> int:
    """Return how many tokens the stub charges for a prompt."""
    return len(text) // _CHARACTERS_PER_TOKEN + 1


class Oracle:
    """Answers prompts; equal questions get equal answers, from any instance with the same seed."""

    def __init__(self, seed: int, fixed: str | None = None, script: Sequence[tuple[str, str]] = ()) -> None:
        self._seed = seed
        self._script = [(re.compile(pattern, re.DOTALL), tuple(_tokens(text))) for pattern, text in script]
        self._fixed = tuple(_tokens(fixed)) if fixed is not None else None

    def answers(self, request: Request) -> list[Answer]:
        """Return `n` answers for each prompt, in OpenAI's order."""
        sampled = request.temperature > 0
        return [
            self._answer(request, f"{prompt}\0{request.seed}\0{index}" if sampled else prompt)
            for prompt in request.prompts
            for index in range(request.n)
        ]

    def _answer(self, request: Request, key: str) -> Answer:
        scripted = (tokens for pattern, tokens in self._script if pattern.search(key))
        tokens = next(scripted, None) or self._fixed or self._invent(key)
        if request.ignore_eos and request.max_tokens:
            tokens = (tokens * (request.max_tokens // len(tokens) + 1))[: request.max_tokens]
        finish, phrase = "stop", None
        if request.max_tokens is not None and (len(tokens) > request.max_tokens or request.ignore_eos):
            tokens, finish = tokens[: request.max_tokens], "length"
        if request.stop:
            text = "".join(tokens)
            ends = [(end, stop) for stop in request.stop if stop and (end := text.find(stop)) >= 0]
            if ends:
                end, phrase = min(ends)
                tokens, finish = _cut(tokens, end), "stop"
        return Answer(tokens, finish, phrase)

    def _invent(self, key: str) -> tuple[str, ...]:
        rng = random.Random(zlib.crc32(key.encode("utf-8", "surrogatepass"), self._seed & 0xFFFFFFFF))
        words = rng.choices(WORDS, k=rng.randrange(6, 30))
        words += ["The", "answer", "is"]
        return (*(f"{word} " for word in words), f"\\boxed{{{rng.randrange(100)}}}.")


def _tokens(text: str) -> list[str]:
    words = text.split(" ")
    return [f"{word} " for word in words[:-1]] + [words[-1]]


def _cut(tokens: Sequence[str], end: int) -> tuple[str, ...]:
    kept = []
    for token in tokens:
        if end <= 0:
            break
        kept.append(token[:end])
        end -= len(token)
    return tuple(kept)


def usage(request: Request, answers: Sequence[Answer]) -> dict[str, int]:
    """Return the token counts of a response."""
    prompt = sum(map(count_tokens, request.prompts))
    completion = sum(len(answer.tokens) for answer in answers)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def response(request: Request, answers: Sequence[Answer], model: str, number: int) -> dict[str, Any]:
    """Return the body of a whole response."""
    return {
        **_envelope(request, model, number, chunk=False),
        "choices": [_choice(request, index, answer) for index, answer in enumerate(answers)],
        "usage": usage(request, answers),
    }


def chunks(request: Request, answers: Sequence[Answer], model: str, number: int) -> list[dict[str, Any]]:
    """Return the events of a streamed response, one per token."""
    envelope = _envelope(request, model, number, chunk=True)
    events = []
    for index, answer in enumerate(answers):
        for position, token in enumerate(answer.tokens):
            delta = {"role": "assistant", "content": token} if position == 0 else {"content": token}
            said: dict[str, Any] = {"delta": delta} if request.chat else {"text": token}
            events.append({**envelope, "choices": [{"index": index, **said, "finish_reason": None}]})
        last: dict[str, Any] = {"delta": {}} if request.chat else {"text": ""}
        events.append(
            {**envelope, "choices": [{"index": index, **last, "finish_reason": answer.finish_reason}]}
        )
    if request.stream_usage:
        events.append({**envelope, "choices": [], "usage": usage(request, answers)})
    return events


def _envelope(request: Request, model: str, number: int, *, chunk: bool) -> dict[str, Any]:
    kind = "chat.completion" if request.chat else "text_completion"
    return {
        "id": f"stub-{number}",
        "object": f"{kind}.chunk" if chunk and request.chat else kind,
        "created": int(time.time()),
        "model": model,
    }


def _choice(request: Request, index: int, answer: Answer) -> dict[str, Any]:
    choice: dict[str, Any] = {"index": index, "finish_reason": answer.finish_reason}
    if answer.stop_reason is not None:
        choice["stop_reason"] = answer.stop_reason
    if request.chat:
        choice["message"] = {"role": "assistant", "content": answer.text}
    else:
        choice["text"] = answer.text
    if request.top_logprobs is not None:
        detail = _chat_logprobs if request.chat else _text_logprobs
        choice["logprobs"] = detail(answer.tokens, request.top_logprobs)
    return choice


def _alternatives(token: str, count: int) -> list[tuple[str, float]]:
    ranked = [token, *(f"{word} " for word in WORDS if f"{word} " != token)][:count]
    return [(alternative, _LOGPROB - rank) for rank, alternative in enumerate(ranked)]


def _chat_logprobs(tokens: Sequence[str], top: int) -> dict[str, Any]:
    def entry(token: str, logprob: float) -> dict[str, Any]:
        return {"token": token, "logprob": logprob, "bytes": list(token.encode())}

    return {
        "content": [
            {**entry(token, _LOGPROB), "top_logprobs": [entry(*pair) for pair in _alternatives(token, top)]}
            for token in tokens
        ]
    }


def _text_logprobs(tokens: Sequence[str], top: int) -> dict[str, Any]:
    starts = [0]
    for token in tokens[:-1]:
        starts.append(starts[-1] + len(token))
    return {
        "tokens": list(tokens),
        "token_logprobs": [_LOGPROB] * len(tokens),
        "top_logprobs": [dict(_alternatives(token, max(top, 1))) for token in tokens],
        "text_offset": starts[: len(tokens)],
    }
