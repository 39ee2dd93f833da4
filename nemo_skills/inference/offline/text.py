"""Between text and tokens, the same for all engines: chat templates, length limits, ends of responses."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from nemo_skills.core.errors import UserError
from nemo_skills.inference.offline.spec import Answer, EngineSpec, Item, Result
from nemo_skills.inference.overflow import cut, text_length

_UNLIMITED = 10**9
_MARGIN = 0.97
Messages = list[dict[str, Any]]
_CONTEXT_TOKENS = 4
"""Tokens of the prompt decoded with a response: some tokenizers drop a blank at the start of a text."""


class TokenRequest(NamedTuple):
    """A prompt for a backend."""

    ids: list[int]
    seed: int
    limit: int
    """Most tokens to generate."""


class TokenAnswer(NamedTuple):
    """What a backend generated, the ending token included."""

    ids: list[int]
    finish: str
    logprobs: tuple[float, ...] | None = None


class Backend(Protocol):
    """Turns tokens into more tokens."""

    def complete(self, requests: Sequence[TokenRequest]) -> list[TokenAnswer]:
        """Answer all requests, in their order. Equal calls give equal answers."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Numbers of tokens."""

    context: int | None
    response: int
    prompt: int | None

    @classmethod
    def of(cls, spec: EngineSpec, context: int | None) -> "Limits":
        """Settle the limits for a model made for `context` tokens.

        Raises:
            UserError: nothing is left for a prompt, or the model does not say how long a response may be.
        """
        context = spec.context or context
        if spec.max_tokens is None and context is None:
            raise UserError("The model does not say how long its context is; set the longest response.")
        response = spec.max_tokens if spec.max_tokens is not None else (context or 0) // 2
        beside = 1 if spec.long_prompts == "shorten_response" else response
        bounds = [spec.max_prompt, None if context is None else context - beside]
        prompt = min((bound for bound in bounds if bound is not None), default=None)
        if prompt is not None and prompt < 1:
            raise UserError(
                f"Responses of up to {response} tokens leave no room for a prompt in a context of {context}."
            )
        if spec.sampling.min_tokens > response:
            raise UserError(
                f"Responses have {spec.sampling.min_tokens} tokens at least, but {response} at most."
            )
        return cls(context=context, response=response, prompt=prompt)


class Ending:
    """Tells when a response ends."""

    def __init__(self, tokenizer: Any, spec: EngineSpec, eos: frozenset[int]) -> None:
        self.eos = eos
        self.strings = spec.sampling.end_strings
        self._tokenizer = tokenizer
        self._min_tokens = spec.sampling.min_tokens
        # every token but those that stand for nothing adds a byte at least
        self._window = max((len(text.encode()) for text in self.strings), default=0) + 8

    def at(self, ids: Sequence[int]) -> bool:
        """Whether a response ends with its last token."""
        if len(ids) <= self._min_tokens:
            return False
        if ids[-1] in self.eos:
            return True
        if not self.strings:
            return False
        window = ids[-self._window :]
        # what earlier tokens completed has been looked at, or came too early to count
        return self._find(self.decode(window), self._length(window[:-1])) is not None

    def cut(self, text: str, ids: Sequence[int], *, keep: bool) -> str:
        """Drop what follows the first end string of a response, and with `keep=False` that string too."""
        found = self._find(text, self._length(ids[: self._min_tokens], clean=not keep))
        return text if found is None else text[: found[1] if keep else found[0]]

    def decode(self, ids: Sequence[int], *, clean: bool = False) -> str:
        """Return the text of tokens."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=clean, clean_up_tokenization_spaces=False)
        return text

    def _length(self, ids: Sequence[int], *, clean: bool = False) -> int:
        """Return how many characters tokens are; the next one may complete the last of these."""
        return len(self.decode(ids, clean=clean).rstrip("\ufffd"))

    def _find(self, text: str, start: int = 0) -> tuple[int, int] | None:
        """Return where the first end string that ends after `start` begins and ends."""
        places = [(text.find(s, max(0, start + 1 - len(s))), len(s)) for s in self.strings]
        return min(((at, at + size) for at, size in places if at >= 0), default=None)


class TextEngine:
    """An engine that takes prompts and gives texts."""

    def __init__(self, spec: EngineSpec) -> None:
        """Load the tokenizer, then the model."""
        check_model(spec.model)
        self._spec = spec
        self._tokenizer, context, eos = _load_tokenizer(spec.model)
        self.limits = Limits.of(spec, context)
        self._ending = Ending(self._tokenizer, spec, eos)
        self._backend = _make_backend(spec, self.limits, self._ending)

    def answer(self, items: Sequence[Item]) -> list[Result]:
        """Answer a batch. The same batch always gets the same answers, whatever came before it."""
        prompts = [self._encode(item) for item in items]
        usable = [(i, p) for i, p in enumerate(prompts) if p.result.refused is None]
        wanted = max((len(item.seeds) for item in items), default=0)
        # greedy responses are all alike: one is computed
        rounds = min(wanted, 1) if self._spec.sampling.greedy else wanted
        requests = [
            TokenRequest(prompt.ids, items[i].seeds[round_], prompt.result.longest or self.limits.response)
            for round_ in range(rounds)
            for i, prompt in usable
            if round_ < len(items[i].seeds)
        ]
        answers = iter(self._backend.complete(requests) if requests else [])
        found: list[list[Answer]] = [[] for _ in items]
        for round_ in range(rounds):
            for i, prompt in usable:
                if round_ < len(items[i].seeds):
                    found[i].append(self._decode(prompt.ids, next(answers)))
        return [
            _with_answers(prompt.result, texts, len(item.seeds))
            for item, prompt, texts in zip(items, prompts, found, strict=True)
        ]

    def _encode(self, item: Item) -> "_Prompt":
        text, ids = self._tokens(item, item.prompt)
        if not ids:
            refused = "the prompt is empty, it has no token"
            return _Prompt([], Result(prompt=text, prompt_tokens=0, refused=refused))
        limit = self.limits.prompt
        if limit is not None and len(ids) > limit:
            return self._shorten(item, text, ids, limit)
        room = self.limits.response if self.limits.context is None else self.limits.context - len(ids)
        longest = room if room < self.limits.response else None
        return _Prompt(ids, Result(prompt=text, prompt_tokens=len(ids), longest=longest))

    def _tokens(self, item: Item, prompt: str | Messages) -> tuple[str, list[int]]:
        text = prompt if isinstance(prompt, str) else self._render(prompt)
        # a chat template writes all special tokens itself
        special = item.bos is None and isinstance(prompt, str)
        ids: list[int] = self._tokenizer(text, add_special_tokens=special)["input_ids"]
        bos = self._tokenizer.bos_token_id
        if item.bos and bos is not None and ids[:1] != [bos]:
            ids = [bos, *ids]
        return text, ids

    def _shorten(self, item: Item, text: str, ids: list[int], limit: int) -> "_Prompt":
        """Cut a prompt that is too long, if that is wanted: messages by their words, texts by tokens."""
        whole, kept = len(ids), ids
        from_start = self._spec.long_prompts == "truncate_left"
        if from_start or self._spec.long_prompts == "truncate_right":
            if isinstance(item.prompt, str):
                kept = ids[-limit:] if from_start else ids[:limit]
                text = self._ending.decode(kept)
            else:
                text, kept = self._cut_messages(item, item.prompt, ids, limit)
        if len(kept) <= limit:
            return _Prompt(kept, Result(prompt=text, prompt_tokens=whole, cut=whole - len(kept)))
        refused = f"the prompt has {whole} tokens, {limit} are allowed"
        return _Prompt([], Result(prompt=text, prompt_tokens=whole, refused=refused))

    def _cut_messages(
        self, item: Item, messages: Messages, ids: list[int], limit: int
    ) -> tuple[str, list[int]]:
        """Leave out words of the conversation until the prompt fits; tags and system message stay whole."""
        whole = left = text_length(messages)
        from_start = self._spec.long_prompts == "truncate_left"
        text = ""
        while len(ids) > limit and left > 0:
            left = min(int(left * _MARGIN * limit / len(ids)), left - 1)
            text, ids = self._tokens(item, cut(messages, whole - left, from_start=from_start))
        return text, ids

    def _render(self, messages: Messages) -> str:
        """Return messages as one text; words that the assistant has begun to say are continued."""
        from jinja2.exceptions import TemplateError

        if not self._tokenizer.chat_template:
            raise UserError(f"{self._spec.model} has no chat template, which rows with messages need.")
        begun = messages[-1].get("role") == "assistant"
        try:
            text: str = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=not begun, continue_final_message=begun
            )
        except TemplateError as error:
            raise UserError(f"The chat template of {self._spec.model} refuses a row: {error}") from None
        return text

    def _decode(self, prompt: list[int], answer: TokenAnswer) -> Answer:
        clean = self._spec.clean
        before = prompt[-_CONTEXT_TOKENS:]
        head = self._ending.decode(before, clean=clean)
        text = self._ending.decode([*before, *answer.ids], clean=clean)
        text = text[len(head) :] if text.startswith(head) else self._ending.decode(answer.ids, clean=clean)
        if answer.finish == "stop":
            text = self._ending.cut(text, answer.ids, keep=not clean)
        return Answer(text=text, tokens=len(answer.ids), finish=answer.finish, logprobs=answer.logprobs)


class _Prompt(NamedTuple):
    ids: list[int]
    result: Result


def _with_answers(result: Result, answers: list[Answer], wanted: int) -> Result:
    if result.refused is not None:
        return result
    alike = answers * wanted if len(answers) < wanted else answers
    return replace(result, answers=tuple(alike))


def check_model(model: str) -> None:
    """Raise a `UserError` that says what to do unless a model is in Hugging Face's format.

    A name that is no path is taken for one of the model hub.
    """
    path = Path(model).expanduser()
    if path.suffix == ".nemo" or (path / "model_config.yaml").is_file() or (path / "model_weights").is_dir():
        raise UserError(
            f"{model} is a NeMo checkpoint. Convert it to Hugging Face's format first (ns convert), then give"
            " that folder."
        )
    if path.is_dir() and not (path / "config.json").is_file():
        raise UserError(f"{model} holds no model in Hugging Face's format: config.json is missing.")
    if path.is_file():
        raise UserError(f"{model} is a file; give the folder of a model in Hugging Face's format.")
    is_name = model.count("/") <= 1 and not model.startswith(("/", ".", "~"))
    if not path.exists() and not is_name:
        raise UserError(f"The model {model} does not exist.")


def _load_tokenizer(model: str) -> tuple[Any, int | None, frozenset[int]]:
    """Return the tokenizer, how long a context the model was made for, and which tokens end its responses."""
    try:
        from transformers import AutoConfig, AutoTokenizer, GenerationConfig
    except ImportError as error:
        raise UserError(f"{error.name} is missing here: pip install 'nemo-skills[serve]'") from None
    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
        config = AutoConfig.from_pretrained(model).get_text_config()
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"Cannot load {model}: {str(error).strip().splitlines()[0]}") from None
    try:
        ends = GenerationConfig.from_pretrained(model).eos_token_id
    except OSError:
        ends = None
    eos = {tokenizer.eos_token_id}
    for found in (ends, getattr(config, "eos_token_id", None)):
        eos |= set(found) if isinstance(found, list) else {found}
    lengths = [getattr(config, "max_position_embeddings", None), tokenizer.model_max_length]
    known = [int(n) for n in lengths if n and n < _UNLIMITED]
    return tokenizer, min(known, default=None), frozenset(e for e in eos if e is not None)


def _make_backend(spec: EngineSpec, limits: Limits, ending: Ending) -> Backend:
    if spec.engine == "vllm":
        from nemo_skills.inference.offline.engine_vllm import VllmBackend

        return VllmBackend(spec, limits, ending)
    if spec.engine == "trtllm":
        from nemo_skills.inference.offline.engine_trtllm import TrtllmBackend

        return TrtllmBackend(spec, limits, ending)
    from nemo_skills.inference.offline.engine_hf import HfBackend

    return HfBackend(spec, ending)
