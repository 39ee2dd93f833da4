"""How an option is declared, once, and read, the same way from a shell and from Python."""

import dataclasses
import operator
import os
import re
import types
import typing
from collections.abc import Iterable
from dataclasses import MISSING, dataclass

from nemo_skills.core.errors import UserError, did_you_mean

REQUIRED = MISSING
_SEPARATOR = r"[,\s]+"
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def option(
    default: object,
    description: str,
    *,
    minimum: int | None = None,
    choices: tuple[str, ...] = (),
    separator: str = _SEPARATOR,
    place: str = "",
) -> typing.Any:
    """Declare a field of an option group.

    Args:
        default: Its value when it is not given; `REQUIRED` when it has to be.
        description: One line for `--help`.
        minimum: The smallest number allowed.
        choices: The only texts allowed.
        separator: For lists: the pattern that separates items within one text.
        place: What a usage line calls it, for an option that may also be given by its place, without a name.
    """
    metadata = {
        "help": description,
        "minimum": minimum,
        "choices": choices,
        "separator": separator,
        "place": place,
    }
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option of a wrapper, as read from its field."""

    name: str
    annotation: object
    kind: type
    """str, int or bool: what a value, or each item of a list, is."""
    is_list: bool
    default: object
    help: str
    panel: str
    minimum: int | None
    choices: tuple[str, ...]
    separator: str
    place: str

    @property
    def required(self) -> bool:
        """Whether it has to be given."""
        return self.default is REQUIRED

    @property
    def is_flag(self) -> bool:
        """Whether its name alone, without a value, means true."""
        return self.kind is bool

    @property
    def metavar(self) -> str:
        """The kind of value, as `--help` shows it."""
        if self.is_list:
            return "LIST"
        if self.choices:
            return "|".join(self.choices)
        return {str: "TEXT", int: "NUMBER", bool: "[=false]" if self.default else ""}[self.kind]

    def split(self, text: str) -> list[str]:
        """Split one text into the items of a list; `3..5` among numbers means 3, 4 and 5."""
        items = [item for item in re.split(self.separator, text.strip()) if item]
        if self.kind is not int:
            return items
        return [number for item in items for number in _expand_range(item)]

    def read(self, value: object) -> object:
        """Turn a given value, text or not, into the declared type; None means not given."""
        if value is None:
            return self.default
        if not self.is_list:
            return self._read_one(value)
        if isinstance(value, str):
            return tuple(self._read_one(item) for item in self.split(value))
        items = value if isinstance(value, Iterable) else [value]
        return tuple(self._read_one(item) for item in items)

    def _read_one(self, value: object) -> object:
        try:
            result = _READERS[self.kind](value)
        except (AttributeError, KeyError, TypeError, ValueError):
            wanted = {str: "text", int: "a whole number", bool: "true or false"}[self.kind]
            raise UserError(f"option '{self.name}' takes {wanted}, not {value!r}") from None
        if self.minimum is not None and isinstance(result, int) and result < self.minimum:
            raise UserError(f"option '{self.name}' must be at least {self.minimum}, not {result}")
        if self.choices and result not in self.choices:
            hint = did_you_mean(str(result), self.choices)
            raise UserError(
                f"option '{self.name}' is one of {', '.join(self.choices)}, not '{result}'.{hint}"
            )
        return result


def _read_text(value: object) -> str:
    return os.fspath(typing.cast("str | os.PathLike[str]", value))


def _read_number(value: object) -> int:
    if isinstance(value, bool):
        raise TypeError
    return int(value) if isinstance(value, str) else operator.index(typing.cast(int, value))


def _read_flag(value: object) -> bool:
    return value if isinstance(value, bool) else _TRUTH[typing.cast(str, value).lower()]


_READERS = {str: _read_text, int: _read_number, bool: _read_flag}


def _expand_range(item: str) -> list[str]:
    bounds = _RANGE.fullmatch(item)
    if bounds is None:
        return [item]
    first, last = int(bounds[1]), int(bounds[2])
    if last < first:
        raise UserError(f"the range {item} is empty: write the smaller number first")
    return [str(number) for number in range(first, last + 1)]


def options_of(group: type) -> list[Option]:
    """Read the options that a group declares, in order."""
    hints = typing.get_type_hints(group)
    panel = (group.__doc__ or group.__name__).partition("\n")[0].rstrip(".")
    return [_from_field(field, hints[field.name], panel) for field in dataclasses.fields(group)]


def _from_field(field: "dataclasses.Field[object]", annotation: object, panel: str) -> Option:
    is_list = typing.get_origin(annotation) is tuple
    inner = (
        typing.get_args(annotation) if is_list or isinstance(annotation, types.UnionType) else (annotation,)
    )
    (kind,) = [part for part in inner if part not in {type(None), ...}]
    return Option(
        name=field.name,
        annotation=annotation,
        kind=kind,
        is_list=is_list,
        default=field.default,
        panel=panel,
        **field.metadata,
    )
