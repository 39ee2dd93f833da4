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
_CONTINUES_CHAT = frozenset({"vllm", "sglang", "stub"})
_OURS = frozenset({"messages", "prompt", "model", "stream", "n"})


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Log probabilities of the tokens of an answer."""

    tokens: list[str]
    logprobs: list[float | None]
    top_logprobs: list[dict[str, float]]


class Answer(NamedTuple):
    """What a server said."""

    text: str
    finish_reason: str | None
    num_tokens: int | None
    reasoning: str | None = None
    """Set where the server itself separates reasoning from the answer."""
    tokens: Tokens | None = None


class RequestFormat:
    """Builds request bodies: what all rows share is serialised once."""

    def __init__(self, config: GenerateConfig, prompt: Prompt) -> None:
        self.chat = not _is_text(config, prompt)
        inference = config.inference
        shared = _settings(config, prompt, chat=self.chat)
        self._tail = b"," + orjson.dumps(shared)[1:] if shared else b"}"
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

    def body(self, model: str, prompt: bytes, position: int, turn: int = 0) -> bytes:
        """Return the body of a request."""
        head = self._heads.get(model)
        if head is None:
            field = "messages" if self.chat else "prompt"
            head = self._heads[model] = b'{"model":%b,"%b":' % (orjson.dumps(model), field.encode())
        if self._seed is None:
            return head + prompt + self._tail
        return b'%b%b,"seed":%d%b' % (head, prompt, self._row_seed(position, turn), self._tail)

    def _row_seed(self, position: int, turn: int) -> int:
        """Return a seed that depends on nothing but the base seed and the place of the row in the input.

        Rows with one and the same prompt must not get the same sample, so each has a seed of its own.
        """
        assert self._seed is not None
        return zlib.crc32(b"%d:%d:%d" % (self._seed, position, turn)) >> 1 if self._sampled else self._seed

    def parse(self, body: bytes) -> Answer:
        """Read an answer.

        Raises:
            RequestError: this is no complete answer.
        """
        try:
            data = orjson.loads(body)
            choice = data["choices"][0]
            usage = data.get("usage") or {}
            message = choice["message"] if self.chat else choice
            text = message["content" if self.chat else "text"]
            logprobs = choice.get("logprobs")
            tokens = _tokens(logprobs, chat=self.chat) if logprobs else None
        except (orjson.JSONDecodeError, KeyError, IndexError, TypeError, AttributeError) as error:
            shown = body[:200].decode(errors="replace")
            raise RequestError(
                Kind.retryable, f"unusable answer ({type(error).__name__}): {shown!r}"
            ) from None
        return Answer(
            text=text or "",
            finish_reason=choice.get("finish_reason"),
            num_tokens=usage.get("completion_tokens", len(tokens.tokens) if tokens else None),
            reasoning=message.get("reasoning_content") or message.get("reasoning") if self.chat else None,
            tokens=tokens,
        )


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
        if server_type not in _CONTINUES_CHAT:
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
