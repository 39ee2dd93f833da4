"""Between Python values and override text: encoding, reading what people type, and splitting command lines.

Hydra's own parser decides what a typed value means. Text that it refuses, or takes for a sweep (a main runs
once, so a sweep means nothing), stands for itself.
"""

import dataclasses
import enum
import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_skills.core._schema import takes_only_text
from nemo_skills.core.errors import UserError, did_you_mean

_OVERRIDE = re.compile(r"(?P<sign>\+\+|\+|~)?(?P<key>[^=\s]+?)(?:=(?P<value>.*))?", re.DOTALL)
_KEY = re.compile(r"(?:[A-Za-z_$][\w$-]*)(?:\.[\w$-]+)*", re.ASCII)
# Text that means itself in Hydra's grammar without quotes, reserved words and numbers apart
_PLAIN_TEXT = re.compile(r"[A-Za-z_/][A-Za-z0-9_/.-]*", re.ASCII)
_RESERVED = {"null", "true", "false", "nan", "inf"}
_SAFE_DICT_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*", re.ASCII)
_NUMBER_OR_WORD = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?", re.ASCII)
CONFIG_FLAGS = {"--config-path": "path", "--config-name": "name", "--config-dir": "dir"}
_SHORT_FLAGS = {"-cp": "--config-path", "-cn": "--config-name", "-cd": "--config-dir"}


class NotGrammarError(Exception):
    """The text is no single value in Hydra's grammar."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Override:
    """One `++key=value` as typed; `value` is None where there is no `=`."""

    sign: str
    key: str
    value: str | None

    @property
    def path(self) -> tuple[str, ...]:
        """The key's parts."""
        return tuple(self.key.split("."))


@dataclasses.dataclass(frozen=True, kw_only=True)
class CommandLine:
    """What a main was given: overrides, and where its config file is."""

    overrides: tuple[Override, ...]
    config_path: str | None = None
    config_name: str | None = None
    config_dir: str | None = None

    def tokens(self) -> tuple[str, ...]:
        """Return the same command line, one token per argument."""
        flags = {"--config-path": self.config_path, "--config-name": self.config_name}
        flags["--config-dir"] = self.config_dir
        typed = [f"{flag}={value}" for flag, value in flags.items() if value is not None]
        return (*typed, *map(token, self.overrides))


def token(override: Override) -> str:
    """Return an override as one token."""
    head = f"{override.sign}{override.key}"
    return head if override.value is None else f"{head}={override.value}"


def split(tokens: Sequence[str]) -> CommandLine:
    """Sort tokens into overrides and Hydra's flags; every token that is neither is reported."""
    flags: dict[str, str] = {}
    overrides: list[Override] = []
    problems: list[str] = []
    remaining = iter(tokens)
    for text in remaining:
        try:
            if text.startswith("-"):
                _read_flag(text, remaining, flags)
            else:
                overrides.append(read_override(text))
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
    return CommandLine(
        overrides=tuple(overrides),
        config_path=flags.get("path"),
        config_name=flags.get("name"),
        config_dir=flags.get("dir"),
    )


def _read_flag(text: str, remaining: Iterator[str], flags: dict[str, str]) -> None:
    name, equals, value = text.partition("=")
    name = _SHORT_FLAGS.get(name, name)
    if name not in CONFIG_FLAGS:
        near = did_you_mean(name, CONFIG_FLAGS) or _as_override(text.lstrip("-"))
        raise UserError(f"{text}: unknown option (main arguments look like ++key=value).{near}")
    if not equals:
        value = next(remaining, "")
    if not value:
        raise UserError(f"{name}: needs a value")
    flags[CONFIG_FLAGS[name]] = value


def read_override(text: str) -> Override:
    """Split `++key=value`, `+key=value`, `key=value` or `~key[=value]`."""
    match = _OVERRIDE.fullmatch(text)
    if match is None or not _KEY.fullmatch(match["key"]):
        raise UserError(f"{text}: not a main argument (they look like ++key=value).{_as_override(text)}")
    if match["value"] is None and match["sign"] != "~":
        raise UserError(f"{text}: has no value (write ++{match['key']}=...)")
    return Override(sign=match["sign"] or "", key=match["key"], value=match["value"])


def _as_override(text: str) -> str:
    key, _, value = text.lstrip("+").partition("=")
    return f" Did you mean '++{key}={value or '...'}'?" if _KEY.fullmatch(key) else ""


# ---- Python values to text


def encode_override(key: str, value: Any) -> str:
    """Return `++key=value` that arrives in a main as exactly this value."""
    if not _KEY.fullmatch(key):
        raise UserError(f"{key!r} cannot be a main argument's key")
    return f"++{key}={encode(value)}"


def encode(value: Any) -> str:
    """Return text in Hydra's grammar that stands for a value.

    Hydra's dictionary keys can be neither quoted nor hold every character, so a value with such keys is
    written as JSON, which Hydra's grammar never accepts and our mains read.
    """
    value = _simplify(value)
    if isinstance(value, str) and _PLAIN_TEXT.fullmatch(value) and value.lower() not in _RESERVED:
        return value
    if _has_plain_keys(value):
        return _in_grammar(value)
    return json.dumps(value, ensure_ascii=False)


def _simplify(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [_simplify(item) for item in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _simplify(item) for key, item in value.items()}
    raise UserError(f"{value!r} ({type(value).__name__}) cannot be passed as a main argument")


def _has_plain_keys(value: Any) -> bool:
    if isinstance(value, dict):
        plain = all(_SAFE_DICT_KEY.fullmatch(key) and key.lower() not in _RESERVED for key in value)
        return plain and all(map(_has_plain_keys, value.values()))
    return not isinstance(value, list) or all(map(_has_plain_keys, value))


def _in_grammar(value: Any) -> str:
    if isinstance(value, str):
        return quote(escape_interpolation(value))
    if isinstance(value, list):
        return f"[{','.join(map(_in_grammar, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_in_grammar(item)}" for key, item in value.items()) + "}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value)


def quote(text: str) -> str:
    """Quote text for Hydra: a backslash counts only in front of a quote."""
    mark = '"' if "'" in text and '"' not in text else "'"
    escaped = re.sub(rf"(\\*){mark}", lambda m: m[1] * 2 + "\\" + mark, text)
    trailing = len(escaped) - len(escaped.rstrip("\\"))
    return f"{mark}{escaped}{escaped[len(escaped) - trailing :]}{mark}"


def escape_interpolation(text: str) -> str:
    """Write `${` so that OmegaConf takes it for text."""
    return re.sub(r"(\\*)\$\{", lambda m: m[1] * 2 + r"\${", text)


# ---- typed text to values


def normalise(text: str) -> str:
    """Rewrite an override whose value is not in Hydra's grammar (or is a sweep) as a quoted value.

    JSON lists and objects stay as they are: only the main knows whether its key wants data or text.
    """
    override = read_override(text)
    if override.value is None or _is_plain(override.value):
        return text
    try:
        parse(override.value)
    except NotGrammarError:
        if _json(override.value) is None:
            return token(dataclasses.replace(override, value=quote(override.value)))
    return text


def _is_plain(value: str) -> bool:
    """Tell without Hydra whether a value is surely in the grammar."""
    return not value or bool(_PLAIN_TEXT.fullmatch(value) or _NUMBER_OR_WORD.fullmatch(value))


def read_value(text: str, annotation: Any) -> Any:
    """Return what typed text means for a field of this type; interpolations are left in it.

    Text typed without quotes arrives as typed. For a field that holds text this covers everything but a
    quoted string and `null`; elsewhere Hydra's grammar tells numbers, lists and so on from text.
    """
    only_text = takes_only_text(annotation)
    looks_special = text.lstrip()[:1] in ("'", '"') or text.strip().lower() == "null"
    if only_text and not looks_special:
        return _guard(text)
    try:
        value = parse(text)
    except NotGrammarError:
        data = None if only_text else _json(text)
        return _guard(text) if data is None else escape_all(data)
    if type(value) is str or (only_text and value is not None and not _is_quoted(value)):
        return _guard(text)
    return _unquote(value)


def parse(text: str) -> Any:
    """Parse one value with Hydra; its quoted strings stay marked as such."""
    from hydra.core.override_parser.types import QuotedString
    from hydra.errors import HydraException

    try:
        override = _parser().parse_override(f"key={text}")
    except (HydraException, RecursionError) as error:
        raise NotGrammarError(text) from error
    value = override._value
    if not _holds_only(value, (str, int, float, QuotedString)):  # but for sweeps and globs
        raise NotGrammarError(text)
    return value


@functools.cache
def _parser() -> Any:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create()


def _holds_only(value: Any, kinds: tuple[type, ...]) -> bool:
    if isinstance(value, list):
        return all(_holds_only(item, kinds) for item in value)
    if isinstance(value, dict):
        return all(_holds_only(item, kinds) for item in value.values())
    return value is None or isinstance(value, kinds)


def _json(text: str) -> Any:
    """Return the JSON list or object that the text is, or None."""
    if text.lstrip()[:1] not in ("[", "{"):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _unquote(value: Any) -> Any:
    if isinstance(value, list):
        return [_unquote(item) for item in value]
    if isinstance(value, dict):
        return {_unquote(key): _unquote(item) for key, item in value.items()}
    if _is_quoted(value):
        return _guard(value.text)
    return _guard(value) if isinstance(value, str) else value


def _is_quoted(value: Any) -> bool:
    from hydra.core.override_parser.types import QuotedString

    return isinstance(value, QuotedString)


def escape_all(value: Any) -> Any:
    """Write `${` in all texts of a value so that OmegaConf takes it for text."""
    if isinstance(value, list):
        return [escape_all(item) for item in value]
    if isinstance(value, dict):
        return {key: escape_all(item) for key, item in value.items()}
    return escape_interpolation(value) if isinstance(value, str) else value


def _guard(text: str) -> str:
    """Take a `${` that begins no interpolation for plain text."""
    if "${" not in text:
        return text
    from omegaconf.errors import GrammarParseError
    from omegaconf.grammar_parser import parse as parse_interpolation

    try:
        parse_interpolation(text)
    except GrammarParseError:
        return escape_interpolation(text)
    return text
