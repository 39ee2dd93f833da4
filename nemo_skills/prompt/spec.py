"""What prompt configs and chat templates may say, and strict reading of both."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import yaml

from nemo_skills.core.errors import UserError, did_you_mean
from nemo_skills.core.jsonl import check_input, iter_lines, parse_row

Example = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class FewShotConfig:
    """How solved examples are shown: prefix, the template once per example, suffix."""

    template: str
    """Text of one example; its placeholders are keys of the examples."""

    prefix: str = ""
    suffix: str = ""

    examples_type: str | None = None
    """Name of shipped examples, or path of a JSON lines file; null shows none."""

    examples: tuple[Example, ...] = ()
    """Examples written out in the config, used when no examples_type is given."""


@dataclass(frozen=True, kw_only=True)
class PromptConfig:
    """A prompt config file."""

    user: str
    """The user's message; `{examples}` is where few-shot examples go."""

    system: str | None = None
    few_shot_examples: FewShotConfig | None = None

    stop_phrases: tuple[str, ...] = ()
    """Texts that end a generation, besides those of the template."""


@dataclass(frozen=True, kw_only=True)
class TemplateConfig:
    """A prompt template file: what a model expects around each message of a conversation."""

    bos: str = ""
    """First token of a text; completions endpoints put it there, so it is no part of rendered prompts."""

    system_begin: str = ""
    system_end: str = ""
    user_begin: str = ""
    user_end: str = ""
    assistant_begin: str = ""
    assistant_end: str = ""
    stop_phrases: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CodeTagsConfig:
    """A code tags file: how a family of models marks code to be run, and where it looks for results."""

    code_begin: str
    code_end: str
    """The generation stops here."""

    output_begin: str
    output_end: str
    """What comes between the result and the model's next words."""

    code_format: Literal["plain", "json"] = "plain"
    """json: what is marked is a tool call, with the code among its arguments."""

    special_tokens: bool = False
    """Whether marks are special tokens, which servers leave out of texts unless asked not to."""


class _Section:
    """One mapping of a YAML file, read key by key with errors that name the place."""

    def __init__(self, data: object, where: str, schema: type) -> None:
        if not isinstance(data, dict):
            raise UserError(f"{where} must hold 'key: value' pairs, not {_kind(data)}")
        known = [f.name for f in fields(schema)]
        unknown = [str(k) for k in data if k not in known]
        if unknown:
            lines = (f"{where}: unknown key '{k}'.{did_you_mean(k, known)}" for k in unknown)
            raise UserError("\n".join([*lines, f"Known keys: {', '.join(known)}"]))
        self._data: dict[str, object] = data
        self.where = where

    def get(self, key: str) -> object:
        return self._data.get(key)

    def text(self, key: str) -> str | None:
        value = self._data.get(key)
        if value is not None and not isinstance(value, str):
            raise UserError(f"{self.where}: '{key}' must be a text, not {_kind(value)}; put it in quotes")
        return value

    def required(self, key: str) -> str:
        value = self.text(key)
        if value is None:
            raise UserError(f"{self.where}: the key '{key}' is missing")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        values = self._list(key)
        if not all(isinstance(v, str) for v in values):
            raise UserError(f"{self.where}: '{key}' must be a list of texts")
        return tuple(str(v) for v in values)

    def examples(self, key: str) -> tuple[Example, ...]:
        examples = list[Example]()
        for number, value in enumerate(self._list(key), start=1):
            if not isinstance(value, dict):
                raise UserError(
                    f"{self.where}: example {number} must hold 'key: value' pairs, not {_kind(value)}"
                )
            examples.append(value)
        return tuple(examples)

    def _list(self, key: str) -> list[object]:
        value = self._data.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            raise UserError(f"{self.where}: '{key}' must be a list, not {_kind(value)}")
        return value


def read_prompt_config(path: Path) -> PromptConfig:
    """Read a prompt config file."""
    section = _Section(_read_yaml(path), str(path), PromptConfig)
    few_shot = section.get("few_shot_examples")
    return PromptConfig(
        user=section.required("user"),
        system=section.text("system"),
        few_shot_examples=None if few_shot is None else _few_shot_config(few_shot, path),
        stop_phrases=section.texts("stop_phrases"),
    )


def read_template_config(path: Path) -> TemplateConfig:
    """Read a prompt template file."""
    section = _Section(_read_yaml(path), str(path), TemplateConfig)
    return TemplateConfig(
        bos=section.text("bos") or "",
        system_begin=section.text("system_begin") or "",
        system_end=section.text("system_end") or "",
        user_begin=section.text("user_begin") or "",
        user_end=section.text("user_end") or "",
        assistant_begin=section.text("assistant_begin") or "",
        assistant_end=section.text("assistant_end") or "",
        stop_phrases=section.texts("stop_phrases"),
    )


def read_code_tags(path: Path) -> CodeTagsConfig:
    """Read a code tags file."""
    section = _Section(_read_yaml(path), str(path), CodeTagsConfig)
    code_format = section.text("code_format") or "plain"
    if code_format not in ("plain", "json"):
        raise UserError(f"{path}: code_format must be plain or json, not '{code_format}'")
    return CodeTagsConfig(
        code_begin=section.required("code_begin"),
        code_end=section.required("code_end"),
        output_begin=section.required("output_begin"),
        output_end=section.required("output_end"),
        code_format="json" if code_format == "json" else "plain",
        special_tokens=section.get("special_tokens") is True,
    )


def read_examples(path: Path) -> tuple[Example, ...]:
    """Read few-shot examples, one JSON object a line."""
    check_input(path)
    return tuple(parse_row(path, line) for line in iter_lines(path))


def _few_shot_config(data: object, path: Path) -> FewShotConfig:
    section = _Section(data, f"{path}: few_shot_examples", FewShotConfig)
    return FewShotConfig(
        template=section.required("template"),
        prefix=section.text("prefix") or "",
        suffix=section.text("suffix") or "",
        examples_type=section.text("examples_type"),
        examples=section.examples("examples"),
    )


def _read_yaml(path: Path) -> object:
    # Not OmegaConf: it would take a "${" in a prompt, common in TeX, for an interpolation
    try:
        return yaml.safe_load(_read(path))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"{path}{place}: not YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML: {error}") from None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from None


def _kind(value: object) -> str:
    names = {dict: "pairs", list: "a list", str: "a text", type(None): "nothing"}
    return names.get(type(value), repr(value))
