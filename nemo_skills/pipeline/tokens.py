"""Sorts the words of a command line into a wrapper's options and the arguments of its main script."""

import enum
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from nemo_skills.core.errors import UserError, did_you_mean
from nemo_skills.pipeline.declare import Option

HELP_FLAGS = ("--help", "-h")
# `--config-dir` is Hydra's and `--config_dir` a wrapper's own: the two programs met long ago
HYDRA_FLAGS = ("--config-path", "--config-name", "--config-dir")
_OVERRIDE = re.compile(r"[+~]|[^-=\s][^=\s]*=")


class Rest(enum.Enum):
    """What may stand on a command line besides options."""

    OVERRIDES = "Hydra's overrides and flags, for the main script"
    COMMAND = "a command to run: it starts with the first word that is no option, and is kept word for word"
    NOTHING = "nothing"


class Words(NamedTuple):
    """A command line, sorted."""

    values: dict[str, str | list[str]]
    """What was given for each option, as text."""
    args: tuple[str, ...]
    """The rest, in order: arguments of the main script, or the command to run."""
    wants_help: bool = False


def sort_words(words: Iterable[str], options: Mapping[str, Option], kind: Rest = Rest.OVERRIDES) -> Words:
    """Sort `words` by the `options` of a wrapper; `kind` says what else may stand beside them."""
    rest = list(words)[::-1]
    values: dict[str, str | list[str]] = {}
    args: list[str] = []
    while rest:
        word = rest.pop()
        name = _option_name(word)
        if word in HELP_FLAGS:
            return Words({}, (), wants_help=True)
        elif word.partition("=")[0] in HYDRA_FLAGS and kind is Rest.OVERRIDES:
            args += [word] if "=" in word else [word, _take_value(word, rest, options)]
        elif name in options:
            _store(values, options[name], _value_of(word, options, rest))
        elif kind is Rest.OVERRIDES and _OVERRIDE.match(word):
            args.append(word)
        elif not word.startswith("-") and (placed := _next_place(options, values)):
            _store(values, placed, word)
        elif kind is Rest.COMMAND and (word == "--" or not word.startswith("-")):
            args = rest[::-1] if word == "--" else [word, *rest[::-1]]
            break
        else:
            raise UserError(_complaint(word, options, kind))
    return Words(values, tuple(args))


def _option_name(word: str) -> str:
    """Return the name in `--some-name=value` with underscores, or nothing when it is no option."""
    return word[2:].partition("=")[0].replace("-", "_") if word.startswith("--") else ""


def _next_place(options: Mapping[str, Option], values: Mapping[str, object]) -> Option | None:
    """Return the first option that a word without a name can stand for."""
    return next((o for o in options.values() if o.place and (o.is_list or o.name not in values)), None)


def _value_of(word: str, options: Mapping[str, Option], rest: list[str]) -> str:
    name, has_value, text = word.partition("=")
    if has_value:
        return text
    return "true" if options[_option_name(word)].is_flag else _take_value(name, rest, options)


def _take_value(name: str, rest: list[str], options: Mapping[str, Option]) -> str:
    """Take the next word, unless it is an option or main argument itself: then the value was forgotten."""
    if not rest:
        raise UserError(f"option '{name}' needs a value")
    word = rest.pop()
    if _option_name(word) in options or word in HELP_FLAGS or word.startswith("++"):
        raise UserError(f"option '{name}' needs a value; if '{word}' is its value, write {name}='{word}'")
    return word


def _store(values: dict[str, str | list[str]], option: Option, text: str) -> None:
    if not option.is_list:
        values[option.name] = text
        return
    items = values.setdefault(option.name, [])
    assert isinstance(items, list)
    items += option.split(text)


def _complaint(word: str, options: Mapping[str, Option], kind: Rest) -> str:
    overrides = " Arguments of the main script are written ++name=value." if kind is Rest.OVERRIDES else ""
    if not word.startswith("-"):
        return f"unexpected argument '{word}'.{overrides}"
    typed = word.partition("=")[0]
    names = [*options, *(flag[2:] for flag in HYDRA_FLAGS if kind is Rest.OVERRIDES)]
    hint = did_you_mean(_option_name(word), names).replace("mean '", "mean '--")
    return f"unknown option '{typed}'.{hint or overrides}"
