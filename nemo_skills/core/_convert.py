"""From nested dictionaries to instances of a schema, noting every problem on the way."""

import dataclasses
import enum
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Literal

from nemo_skills.core import _schema
from nemo_skills.core._schema import Key, KeyPath, describe, is_schema, keys, members
from nemo_skills.core.errors import UserError

_TRUE = {"true", "yes", "on", "y", "1"}
_FALSE = {"false", "no", "off", "n", "0"}
_LISTS = (list, tuple, Sequence)
_LONGEST_SHOWN = 60
UNKNOWN: Any = object()
"""Stands for a value that could not be worked out; whoever finds out why says so."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """Something wrong at one key."""

    path: KeyPath
    message: str
    kind: Literal["unknown", "missing", "value"] = "value"


class Builder:
    """Builds instances of schemas; whatever does not fit is noted in `problems`."""

    def __init__(self, *, literal: Callable[[KeyPath], bool], partial: bool) -> None:
        """Start without problems.

        Args:
            literal: Tells whether `???` at a path is text rather than a missing value.
            partial: Some values are not known yet: accept missing ones, and skip the schemas' own checks.
        """
        self.problems: list[Problem] = []
        self._literal = literal
        self._partial = partial

    def build(self, schema: type, tree: Mapping[Any, Any], path: KeyPath = ()) -> Any:
        """Return an instance of `schema`, or `UNKNOWN` when there were problems."""
        before = len(self.problems)
        known = keys(schema)
        for name in tree:
            if name not in known:
                self._note((*path, str(name)), "unknown key", kind="unknown")
        values = {
            name: self._field(key, tree.get(name, _schema.plain(key.default())), (*path, name))
            for name, key in known.items()
        }
        if self._partial or len(self.problems) > before or UNKNOWN in values.values():
            return UNKNOWN
        try:
            return schema(**values)
        except (ValueError, UserError) as error:
            return self._note(path, str(error))

    def _field(self, key: Key, value: Any, path: KeyPath) -> Any:
        if isinstance(value, str) and value == _schema.MISSING and not self._literal(path):
            return UNKNOWN if self._partial else self._note(path, key.help_line, kind="missing")
        converted = self.convert(key.annotation, value, path)
        chosen = converted if isinstance(converted, list) else [converted]
        if key.choices and any(item not in (*key.choices, None, UNKNOWN) for item in chosen):
            return self._note(path, f"expected {' | '.join(map(str, key.choices))}, got {show(value)}")
        return converted

    def convert(self, annotation: Any, value: Any, path: KeyPath) -> Any:
        """Return `value` as the type asks for it; where it cannot be, note why and return `UNKNOWN`."""
        options = members(annotation)
        if value is UNKNOWN or Any in options or (value is None and NoneType in options):
            return value
        inside: list[Problem] = []
        # A value that already has one of the types keeps it: 5 stays a number in `str | int`
        for option in sorted(options, key=lambda option: type(value) is not option):
            trial = Builder(literal=self._literal, partial=self._partial)
            try:
                converted = trial._single(option, value, path)
            except ValueError:
                continue
            if not trial.problems:
                return converted
            inside = inside or trial.problems
        if inside:
            self.problems += inside
            return UNKNOWN
        wants_list = isinstance(value, str) and any(typing.get_origin(o) in _LISTS for o in options)
        hint = " (a list is written [a,b])" if wants_list else ""
        return self._note(path, f"expected {describe(annotation)}, got {show(value)}{hint}")

    def _single(self, member: Any, value: Any, path: KeyPath) -> Any:
        """Convert to a type that is no union; ValueError says that the value is of another kind."""
        origin = typing.get_origin(member) or member
        if is_schema(member) and isinstance(value, dict):
            return self.build(member, value, path)
        if origin in _LISTS and isinstance(value, list):
            return self._sequence(member, value, path)
        if origin in (dict, Mapping) and isinstance(value, dict):
            return self._mapping(member, value, path)
        return _scalar(member, value)

    def _sequence(self, member: Any, value: list[Any], path: KeyPath) -> Any:
        arguments = typing.get_args(member) or (Any,)
        items = [self.convert(arguments[0], item, (*path, str(i))) for i, item in enumerate(value)]
        return tuple(items) if typing.get_origin(member) is tuple else items

    def _mapping(self, member: Any, value: dict[Any, Any], path: KeyPath) -> dict[Any, Any]:
        key_type, item_type = typing.get_args(member) or (Any, Any)
        convert_key = str if key_type is str else lambda key: key
        return {convert_key(k): self.convert(item_type, v, (*path, str(k))) for k, v in value.items()}

    def _note(
        self, path: KeyPath, message: str, kind: Literal["unknown", "missing", "value"] = "value"
    ) -> Any:
        self.problems.append(Problem(path=path, message=message, kind=kind))
        return UNKNOWN


def show(value: Any) -> str:
    """Return a value for a message, shortened."""
    text = {None: "null", True: "true", False: "false"}.get(value) if _is_word(value) else repr(value)
    assert text is not None
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 3]}..."


def _is_word(value: Any) -> bool:
    return value is None or isinstance(value, bool)


def _scalar(member: Any, value: Any) -> Any:
    if typing.get_origin(member) is Literal:
        return _choice({str(v): v for v in typing.get_args(member)}, value)
    if isinstance(member, type) and issubclass(member, enum.Enum):
        return value if isinstance(value, member) else _choice(_enum_words(member), value)
    reader = _READERS.get(member)
    if reader is None:
        raise ValueError
    return reader(value)


def _enum_words(member: type[enum.Enum]) -> dict[str, Any]:
    return {str(m.value): m for m in member} | dict(member.__members__)


def _choice(words: Mapping[str, Any], value: Any) -> Any:
    word = _read_str(value)
    if word not in words:
        raise ValueError
    return words[word]


def _read_bool(value: Any) -> bool:
    word = str(value).lower()
    if not isinstance(value, (bool, int, str)) or word not in _TRUE | _FALSE:
        raise ValueError
    return word in _TRUE


def _read_int(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError
    if isinstance(value, float) and not value.is_integer():
        raise ValueError
    return int(value)


def _read_float(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError
    return float(value)


def _read_str(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, (str, int, float, Path)):
        raise ValueError
    return str(value)


_READERS: dict[Any, Callable[[Any], Any]] = {
    bool: _read_bool,
    int: _read_int,
    float: _read_float,
    str: _read_str,
    Path: lambda value: Path(_read_str(value)),
}
