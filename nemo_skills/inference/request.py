"""Bodies of requests, and what is taken from the answers; both sides of the OpenAI-compatible interface."""

import zlib
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from nemo_skills.core.errors import UserError
from nemo_skills.inference.config import EndpointType, GenerateConfig, InferenceConfig
from nemo_skills.inference.retry import Kind, RequestError
from nemo_skills.prompt.utils import Prompt

# Sampling settings beyond OpenAI's interface, by the name each server gives them
_EXTRAS: dict[str, dict[str, str]] = {
    "vllm": {"top_k": "top_k", "min_p": "min_p", "repetition_penalty": "repetition_penalty"},
    "sglang": {"top_k": "top_k", "min_p": "min_p", "repetition_penalty": "repetition_penalty"},
    "trtllm": {"top_k": "top_k", "min_p": "min_p", "repetition_penalty": "repetition_penalty"},
    "stub": {"top_k": "top_k", "min_p": "min_p", "repetition_penalty": "repetition_penalty"},
    "nemo": {"top_k": "top_k"},
    # `transformers serve` adds 1 to this field and uses it as the repetition penalty
    "hf": {"repetition_penalty": "frequency_penalty"},
    "openai": {},
}
CONTINUES_CHAT = frozenset({"vllm", "sglang", "stub"})
"""Servers that go on with a last message of the assistant's."""
_TAKES_N = frozenset({"vllm", "sglang", "trtllm", "openai", "stub"})
# Not the model ended these answers but the server, which was stopping or ran out of something
_CUT_OFF = frozenset({"abort", "aborted", "cancelled", "error"})
_OURS = frozenset({"messages", "prompt", "model", "stream", "n"})


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Log probabilities of the tokens of an answer."""

    tokens: list[str]
    logprobs: list[float | None]
    top_logprobs: list[dict[str, float]]


class Answer(NamedTuple):
    """One answer of a server."""

    text: str
    finish_reason: str | None
    reasoning: str | None = None
    """Set where the server itself separates reasoning from the answer."""
    tokens: Tokens | None = None
    stopped_at: str | None = None
    """The stop phrase that ended it, where the server says so."""


class Reply(NamedTuple):
    """All that a server said to a request."""

    answers: tuple[Answer, ...]
    """As many as were asked for, usually one."""
    prompt_tokens: int
    """0 when the server does not say."""
    num_tokens: int | None
    """Tokens of all answers together."""


class RequestFormat:
    """Builds request bodies: what all rows share is serialised once."""

    def __init__(self, config: GenerateConfig, prompt: Prompt) -> None:
        self.chat = not _is_text(config, prompt)
        inference = config.inference
        self._samples = inference.n
        self._shared = _settings(config, prompt, chat=self.chat)
        self._tail = self._end()
        self._seed = None if "seed" in inference.extra_body else inference.random_seed
        self._sampled = inference.temperature > 0
        self._heads: dict[str, bytes] = {}

    @property
    def path(self) -> str:
        """The end of the address to which requests go."""
        return "/chat/completions" if self.chat else "/completions"

    def encode(self, prompt: list[dict[str, Any]] | str) -> bytes:
        """Serialise a prompt, once for all attempts."""
        return orjson.dumps(prompt)

    def encode_continued(self, prompt: bytes, text: str) -> bytes:
        """Return an encoded prompt that has the model go on with a text of its own."""
        sent = orjson.loads(prompt)
        if isinstance(sent, str):
            return orjson.dumps(sent + text)
        if sent[-1].get("role") == "assistant":
            last = sent.pop()
            text = last["content"] + text
        else:
            last = {"role": "assistant"}
        messages = orjson.dumps([*sent, {**last, "content": text}])
        already = self._shared.get("continue_final_message")
        return (
            messages
            if already
            else messages + b',"continue_final_message":true,"add_generation_prompt":false'
        )

    def body(self, model: str, prompt: bytes, place: tuple[int, int], max_tokens: int | None = None) -> bytes:
        """Return the body of a request.

        Args:
            model: the model's name on this server.
            prompt: the encoded prompt.
            place: position of the row and number of the turn.
            max_tokens: a shorter answer than configured.
        """
        head = self._heads.get(model)
        if head is None:
            field = "messages" if self.chat else "prompt"
            head = self._heads[model] = b'{"model":%b,"%b":' % (orjson.dumps(model), field.encode())
        tail = self._tail if max_tokens is None else self._end(max_tokens)
        if self._seed is None:
            return head + prompt + tail
        return b'%b%b,"seed":%d%b' % (head, prompt, self._row_seed(*place), tail)

    def _end(self, max_tokens: int | None = None) -> bytes:
        """Return what follows the prompt in a body."""
        fields = self._shared
        if max_tokens is not None:
            key = "max_completion_tokens" if "max_completion_tokens" in fields else "max_tokens"
            fields = {**fields, key: max_tokens}
        return b"," + orjson.dumps(fields)[1:] if fields else b"}"

    def _row_seed(self, position: int, turn: int) -> int:
        """Return a seed that depends on nothing but the base seed and the place of the row in the input.

        Rows with one and the same prompt must not get the same sample, so each has a seed of its own.
        """
        assert self._seed is not None
        return zlib.crc32(b"%d:%d:%d" % (self._seed, position, turn)) >> 1 if self._sampled else self._seed

    def parse(self, body: bytes) -> Reply:
        """Read the answers.

        Raises:
            RequestError: they are not complete.
        """
        try:
            data = orjson.loads(body)
            choices = data["choices"]
            if choices and len(choices) != self._samples:
                raise RequestError(
                    Kind.bad_request,
                    f"{len(choices)} answers where inference.n={self._samples} were asked for",
                )
            answers = tuple(map(self._answer, choices or [{}]))
            usage = data.get("usage") or {}
            num_tokens = usage.get("completion_tokens")
            prompt_tokens = usage.get("prompt_tokens") or 0
        except (orjson.JSONDecodeError, KeyError, IndexError, TypeError, AttributeError) as error:
            shown = body[:200].decode(errors="replace")
            raise RequestError(
                Kind.retryable, f"unusable answer ({type(error).__name__}): {shown!r}"
            ) from None
        if num_tokens is None and all(answer.tokens for answer in answers):
            num_tokens = sum(len(answer.tokens.tokens) for answer in answers if answer.tokens)
        return Reply(answers, prompt_tokens, num_tokens)

    def _answer(self, choice: dict[str, Any]) -> Answer:
        reason = choice.get("finish_reason")
        content = choice["message"]["content"] if self.chat else choice["text"]
        if reason in _CUT_OFF or (reason is None and content is None):
            raise RequestError(Kind.retryable, f"the server did not finish its answer ({reason})")
        logprobs = choice.get("logprobs")
        tokens = _tokens(logprobs, chat=self.chat) if logprobs else None
        if not self.chat:
            return Answer(choice["text"] or "", reason, None, tokens, _stopped_at(choice))
        message = choice["message"]
        reasoning = message.get("reasoning_content") or message.get("reasoning")
        return Answer(
            message["content"] or "", choice.get("finish_reason"), reasoning, tokens, _stopped_at(choice)
        )


def _stopped_at(choice: dict[str, Any]) -> str | None:
    found = choice.get("stop_reason") or choice.get("matched_stop")
    return found if isinstance(found, str) else None


def _is_text(config: GenerateConfig, prompt: Prompt) -> bool:
    wanted = config.inference.endpoint_type
    if wanted is EndpointType.text and not prompt.is_text:
        raise UserError(
            "inference.endpoint_type=text needs prompt_template or tokenizer, which make the text."
        )
    if wanted is EndpointType.chat and prompt.is_text:
        raise UserError("inference.endpoint_type=chat sends messages; drop prompt_template and tokenizer.")
    return prompt.is_text


def _settings(config: GenerateConfig, prompt: Prompt, *, chat: bool) -> dict[str, Any]:
    """Return the fields that all requests share."""
    inference, server_type = config.inference, config.server.server_type
    fields: dict[str, Any] = {
        "max_tokens": inference.tokens_to_generate,
        "temperature": inference.temperature,
    }
    if inference.temperature > 0:
        fields["top_p"] = inference.top_p
    if inference.n > 1:
        if server_type not in _TAKES_N:
            raise UserError(f"inference.n: a server of type {server_type} gives one answer to a request.")
        fields["n"] = inference.n
    fields |= _extras(inference, server_type)
    stop = [*([config.stop_phrase] if config.stop_phrase else []), *prompt.stop_phrases]
    if stop:
        fields["stop"] = list(dict.fromkeys(stop))
    if inference.top_logprobs is not None:
        fields |= (
            {"logprobs": True, "top_logprobs": inference.top_logprobs}
            if chat
            else {"logprobs": inference.top_logprobs}
        )
    if config.prefix_generation_to_response and chat:
        if server_type not in CONTINUES_CHAT:
            raise UserError(
                f"prefix_generation_to_response: a {server_type} server cannot continue a chat message;"
                " use prompt_template or tokenizer, so that text is sent."
            )
        fields |= {"continue_final_message": True, "add_generation_prompt": False}
    if reserved := sorted(_OURS & inference.extra_body.keys()):
        raise UserError(f"inference.extra_body must not set {', '.join(reserved)}: the client does.")
    fields |= inference.extra_body
    return {key: value for key, value in fields.items() if value is not None}


def _extras(inference: InferenceConfig, server_type: str) -> dict[str, Any]:
    names = _EXTRAS[server_type]
    defaults = InferenceConfig()
    found: dict[str, Any] = {}
    for key in ("top_k", "min_p", "repetition_penalty"):
        value = getattr(inference, key)
        if value == getattr(defaults, key):
            continue
        if key not in names:
            raise UserError(
                f"inference.{key}: a server of type {server_type} does not take it; leave it at"
                f" {getattr(defaults, key)}, or use inference.extra_body if yours does."
            )
        found[names[key]] = value - 1.0 if names[key] == "frequency_penalty" else value
    return found


def _tokens(logprobs: dict[str, Any], *, chat: bool) -> Tokens:
    if not chat:
        return Tokens(
            tokens=logprobs["tokens"],
            logprobs=logprobs["token_logprobs"],
            top_logprobs=logprobs.get("top_logprobs") or [],
        )
    content = logprobs.get("content") or []
    return Tokens(
        tokens=[item["token"] for item in content],
        logprobs=[item["logprob"] for item in content],
        top_logprobs=[{t["token"]: t["logprob"] for t in item.get("top_logprobs") or []} for item in content],
    )
