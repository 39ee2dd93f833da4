"""From messages to what a server takes: the messages themselves, or one text."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from nemo_skills.core.errors import UserError
from nemo_skills.prompt.spec import TemplateConfig

# `role`, `content`, and whatever else an OpenAI-style row carries: passed on as it is
Message = dict[str, Any]
_MARK = "assistant-answer"


class Renderer(Protocol):
    """Turns a conversation into the payload of a request.

    A conversation that ends with an assistant message asks the model to go on with that message.
    """

    @property
    def stop_phrases(self) -> tuple[str, ...]:
        """Texts that end the model's turn in this format."""

    @property
    def assistant_end(self) -> str:
        """What stands behind the assistant's words, which a model learns to write; empty for messages."""

    def render(self, messages: Sequence[Message]) -> list[Message] | str:
        """Return messages for a chat endpoint, or a text for a completions endpoint."""


@dataclass(frozen=True)
class ChatRenderer:
    """Leaves the format to the server."""

    stop_phrases: tuple[str, ...] = ()
    assistant_end: str = ""

    def render(self, messages: Sequence[Message]) -> list[Message]:
        """Return the messages."""
        return list(messages)


@dataclass(frozen=True)
class TemplateRenderer:
    """Writes begin and end tags around each message."""

    template: TemplateConfig

    @property
    def stop_phrases(self) -> tuple[str, ...]:
        """Those of the template."""
        return self.template.stop_phrases

    @property
    def assistant_end(self) -> str:
        """That of the template, without line breaks that only separate turns."""
        return self.template.assistant_end.rstrip("\n")

    def render(self, messages: Sequence[Message]) -> str:
        """Return the text up to where the assistant's words begin, or go on."""
        t = self.template
        tags = {
            "system": (t.system_begin, t.system_end),
            "user": (t.user_begin, t.user_end),
            "assistant": (t.assistant_begin, t.assistant_end),
        }
        finished, started = _split_started(messages)
        parts = list[str]()
        for message in finished:
            role = message.get("role")
            if role not in tags:
                raise UserError(f"a prompt template has no tags for the role '{role}'; use tokenizer=...")
            begin, end = tags[role]
            parts += (begin, _content(message), end)
        return "".join([*parts, t.assistant_begin, started])


class TokenizerRenderer:
    """Uses the chat template that comes with a tokenizer."""

    stop_phrases: tuple[str, ...] = ()

    def __init__(self, path: str) -> None:
        self._path = path
        self._tokenizer = load_tokenizer(path)
        if not self._tokenizer.chat_template:
            raise UserError(f"the tokenizer '{path}' has no chat template; use prompt_template=... instead")
        # Completions endpoints tokenize with special tokens: a BOS in the text would then be the second one
        bos = self._tokenizer.bos_token
        adds_bos = self._tokenizer("a")["input_ids"][:1] == [self._tokenizer.bos_token_id]
        self._bos = bos if bos and adds_bos else ""

    def render(self, messages: Sequence[Message]) -> str:
        """Return the text up to where the assistant's words begin, or go on."""
        from jinja2.exceptions import TemplateError

        finished, started = _split_started(messages)
        try:
            text: str = self._tokenizer.apply_chat_template(
                finished, tokenize=False, add_generation_prompt=True
            )
        except TemplateError as error:
            raise UserError(f"the chat template of '{self._path}' refuses the messages: {error}") from None
        return text.removeprefix(self._bos) + started

    @cached_property
    def assistant_end(self) -> str:
        """What the chat template writes behind an answer, without line breaks that only separate turns."""
        messages = [{"role": "user", "content": "u"}, {"role": "assistant", "content": _MARK}]
        text: str = self._tokenizer.apply_chat_template(messages, tokenize=False)
        return text.rpartition(_MARK)[2].rstrip("\n") if _MARK in text else ""


def _split_started(messages: Sequence[Message]) -> tuple[list[Message], str]:
    """Split off the words of an assistant message at the end, which the model is to continue."""
    if messages and messages[-1].get("role") == "assistant":
        return list(messages[:-1]), _content(messages[-1])
    return list(messages), ""


def _content(message: Message) -> str:
    content = message.get("content")
    if not isinstance(content, str):
        raise UserError(
            f"the content of a '{message.get('role')}' message is not a text, which rendering as text needs; "
            "use the chat endpoint, without prompt_template and tokenizer"
        )
    return content


def load_tokenizer(path: str) -> Any:
    """Load a Hugging Face tokenizer.

    Raises:
        UserError: transformers is missing, or there is no tokenizer at this place.
    """
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise UserError("tokenizer=... needs transformers: pip install 'nemo-skills[serve]'") from None
    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"cannot load the tokenizer '{path}': {first}") from None
