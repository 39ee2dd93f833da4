"""Prompts: `get_prompt("generic/math").fill({"problem": "..."})`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from nemo_skills.core.errors import UserError, did_you_mean
from nemo_skills.prompt.lookup import EXAMPLES, PROMPTS, TEMPLATES
from nemo_skills.prompt.render import (
    ChatRenderer,
    Message,
    Renderer,
    TemplateRenderer,
    TokenizerRenderer,
)
from nemo_skills.prompt.spec import (
    Example,
    FewShotConfig,
    read_examples,
    read_prompt_config,
    read_template_config,
)
from nemo_skills.prompt.text import TextTemplate, as_text

__all__ = ["Message", "Prompt", "get_prompt", "list_examples", "list_prompts", "list_templates"]


class _MessageSource(Protocol):
    """Makes the messages of a row."""

    @property
    def keys(self) -> tuple[str, ...] | None: ...

    def messages(self, row: Mapping[str, Any], history: Sequence[Message]) -> list[Message]: ...


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """Turns rows into requests."""

    name: str
    source: _MessageSource
    renderer: Renderer
    own_stop_phrases: tuple[str, ...] = ()

    @property
    def stop_phrases(self) -> tuple[str, ...]:
        """Texts at which the server should end a generation."""
        return tuple(dict.fromkeys((*self.own_stop_phrases, *self.renderer.stop_phrases)))

    @property
    def keys(self) -> tuple[str, ...] | None:
        """The keys of a row that its request depends on; None when it may be any of them."""
        return self.source.keys

    @property
    def is_text(self) -> bool:
        """Whether `fill` returns a text (for a completions endpoint) instead of chat messages."""
        return not isinstance(self.renderer, ChatRenderer)

    def messages(self, row: Mapping[str, Any], history: Sequence[Message] = ()) -> list[Message]:
        """Return the row's messages.

        Args:
            row: values for the placeholders.
            history: earlier turns, put between the system message and this turn's.
        """
        return self.source.messages(row, history)

    def render(self, messages: Sequence[Message], assistant_prefix: str = "") -> list[Message] | str:
        """Return messages as this prompt's format has them, with the assistant's reply already begun.

        In chat messages the begun reply is a last assistant message: the server must be told to go on with it
        (vLLM: `continue_final_message: true, add_generation_prompt: false`).
        """
        started = [{"role": "assistant", "content": assistant_prefix}] if assistant_prefix else []
        return self.renderer.render([*messages, *started])

    def fill(
        self, row: Mapping[str, Any], *, history: Sequence[Message] = (), assistant_prefix: str = ""
    ) -> list[Message] | str:
        """Return the request for a row: `render(messages(row))`."""
        return self.render(self.messages(row, history), assistant_prefix)


def get_prompt(
    prompt_config: str | None = None,
    *,
    prompt_template: str | None = None,
    tokenizer: str | None = None,
    examples_type: str | None = None,
    system_message: str | None = None,
    prompt_format: Literal["ns", "openai"] = "ns",
) -> Prompt:
    """Read a prompt once, to be filled for many rows.

    Args:
        prompt_config: name of a shipped config (`list_prompts()`) or path of a YAML file.
        prompt_template: name (`list_templates()`) or path of a template: render text with its tags.
        tokenizer: name or path of a Hugging Face tokenizer: render text with its chat template.
        examples_type: name (`list_examples()`) or path of few-shot examples, instead of the config's.
        system_message: system message instead of the config's; placeholders work in it too.
        prompt_format: `openai` takes each row's ready-made `messages` instead of a prompt config.
    """
    renderer = _renderer(prompt_template, tokenizer)
    if prompt_format == "openai":
        given = {
            "prompt_config": prompt_config, "examples_type": examples_type, "system_message": system_message
        }  # fmt: skip
        if extra := [key for key, value in given.items() if value is not None]:
            raise UserError(f"prompt_format=openai takes the rows' messages; drop {', '.join(extra)}")
        return Prompt(name="openai", source=_ReadyMessages(), renderer=renderer)
    if prompt_format != "ns":
        raise UserError(f"unknown prompt_format '{prompt_format}'; it is 'ns' or 'openai'")
    if prompt_config is None:
        raise UserError(
            "prompt_config is missing; give a name "
            f"({', '.join(list_prompts())}), or the path of a .yaml file, or prompt_format=openai"
        )
    return _configured(prompt_config, renderer, examples_type, system_message)


def list_prompts() -> tuple[str, ...]:
    """Return the names of the prompt configs shipped."""
    return PROMPTS.names()


def list_templates() -> tuple[str, ...]:
    """Return the names of the prompt templates shipped."""
    return TEMPLATES.names()


def list_examples() -> tuple[str, ...]:
    """Return the names of the few-shot examples shipped."""
    return EXAMPLES.names()


@dataclass(frozen=True, kw_only=True)
class _ConfiguredMessages:
    """Messages from a prompt config, filled with the row's values."""

    name: str
    system: TextTemplate | None
    user: TextTemplate

    @property
    def keys(self) -> tuple[str, ...]:
        return (*(self.system.keys if self.system else ()), *self.user.keys)

    def messages(self, row: Mapping[str, Any], history: Sequence[Message]) -> list[Message]:
        values = _values(row, self.keys, f"prompt '{self.name}'")
        system = [{"role": "system", "content": self.system.fill(values)}] if self.system else []
        return [*system, *history, {"role": "user", "content": self.user.fill(values)}]


class _ReadyMessages:
    """The row's own messages."""

    keys = ("messages",)

    def messages(self, row: Mapping[str, Any], history: Sequence[Message]) -> list[Message]:
        messages = row.get("messages")
        if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
            raise UserError(
                "prompt_format=openai needs the key 'messages' with a list of role and content pairs; "
                f"keys of the row: {_listed(row)}"
            )
        return [*history, *messages]


def _renderer(prompt_template: str | None, tokenizer: str | None) -> Renderer:
    if prompt_template is not None and tokenizer is not None:
        raise UserError("give prompt_template or tokenizer, not both: each says how the text is rendered")
    if prompt_template is not None:
        return TemplateRenderer(read_template_config(TEMPLATES.find(prompt_template)))
    return ChatRenderer() if tokenizer is None else TokenizerRenderer(tokenizer)


def _configured(
    name: str, renderer: Renderer, examples_type: str | None, system_message: str | None
) -> Prompt:
    path = PROMPTS.find(name)
    config = read_prompt_config(path)
    if system_message is not None:
        config = replace(config, system=system_message)
    user = TextTemplate.parse(config.user, f"{path}: user")
    # An empty system message is none: templates must not write tags around nothing
    system = TextTemplate.parse(config.system, f"{path}: system") if config.system else None
    few_shot = config.few_shot_examples
    if few_shot is None and examples_type is not None:
        raise UserError(
            f"examples_type={examples_type}: {path} has no few_shot_examples to say how to show them"
        )
    if few_shot is not None:
        if examples_type is not None:
            few_shot = replace(few_shot, examples_type=examples_type)
        if "examples" not in user.keys + (system.keys if system else ()):
            raise UserError(
                f"{path}: few_shot_examples are never shown; put {{examples}} where they should be"
            )
        shown = _examples_text(few_shot, f"{path}: few_shot_examples")
        user, system = user.bind("examples", shown), system and system.bind("examples", shown)
    source = _ConfiguredMessages(name=name, system=system, user=user)
    return Prompt(name=name, source=source, renderer=renderer, own_stop_phrases=config.stop_phrases)


def _examples_text(config: FewShotConfig, where: str) -> str:
    examples: Sequence[Example] = config.examples
    if config.examples_type is not None:
        examples = read_examples(EXAMPLES.find(config.examples_type))
    if not examples:
        return ""
    template = TextTemplate.parse(config.template, f"{where}.template")
    shown = [
        template.fill(_values(example, template.keys, f"{where}.template (example {number})"))
        for number, example in enumerate(examples, start=1)
    ]
    return (
        _fixed(config.prefix, f"{where}.prefix") + "".join(shown) + _fixed(config.suffix, f"{where}.suffix")
    )


def _fixed(text: str, where: str) -> str:
    template = TextTemplate.parse(text, where)
    if template.keys:
        raise UserError(f"{where} takes no placeholders, but has {{{template.keys[0]}}}; write {{{{ and }}}}")
    return template.fill({})


def _values(row: Mapping[str, Any], keys: Sequence[str], who: str) -> dict[str, str]:
    absent = [key for key in dict.fromkeys(keys) if row.get(key) is None]
    if not absent:
        return {key: as_text(row[key]) for key in keys}
    problems = []
    for key in absent:
        what = "is null" if key in row else "is missing"
        problems.append(f"'{key}' {what}.{did_you_mean(key, [k for k in row if k not in keys])}")
    raise UserError(
        f"{who} needs a value that is not there: {' '.join(problems)} Keys of the row: {_listed(row)}"
    )


def _listed(row: Mapping[str, Any]) -> str:
    return ", ".join(map(str, row)) or "none"
