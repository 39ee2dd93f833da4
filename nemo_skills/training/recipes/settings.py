"""Groups of settings that check every assignment, and are derived from the configs of the mains.

A setting is declared once, in the config of a main. A group only gives it a place and a name: `of` names the
key of the main, and takes type, default, help and choices from there. The type that stands beside it is for
readers and type checkers; `check_types` compares it with the declared one, so the two cannot differ.
"""

import copy
import dataclasses
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

from nemo_skills.core._convert import Builder, show
from nemo_skills.core._schema import Key, describe, is_schema, keys, members
from nemo_skills.core.errors import UserError, did_you_mean
from nemo_skills.training.config import SftConfig
from nemo_skills.training.dpo_config import DpoConfig

T = TypeVar("T")
Values = dict[str, Any]
MAINS: Mapping[str, type] = {"sft": SftConfig, "dpo": DpoConfig}
_INTERNAL = ("_editable", "_origins")


class Leaf(NamedTuple):
    """A setting at its place in a container."""

    path: str
    key: Key
    value: Any
    main_path: str | None
    """Key of the main, but for `{algo}`; None where only Python can give it."""
    origin: str | None


def of(path: str) -> Any:
    """Declare a field to be a key of the mains; `{algo}` and `{dataset}` in it stand for names of groups."""
    declared = _declared(path)
    field = declared.field
    metadata = {**field.metadata, "main_path": path, "declared": declared.annotation}
    if field.default_factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=field.default_factory, metadata=metadata)
    return dataclasses.field(default=field.default, metadata=metadata)


def group(kind: type[T], help_line: str, *, dataset: str = "") -> T:
    """Declare a field to be a group of settings."""
    metadata = {"help": help_line, "dataset": dataset}
    return dataclasses.field(default_factory=kind, metadata=metadata)


def optional_group(help_line: str) -> Any:
    """Declare a field to be a group of settings, or None."""
    return dataclasses.field(default=None, metadata={"help": help_line})


def python_only(help_line: str) -> Any:
    """Declare a field for something that no file can hold, such as a function."""
    return dataclasses.field(default=None, metadata={"help": help_line, "python_only": True})


@cache
def _declared(path: str) -> Key:
    """Return the declaration of a key of the mains."""
    for algo, schema in MAINS.items():
        found: Key | None = None
        for part in path.format(algo=algo, dataset="train_ds").split("."):
            nested = [m for m in members(found.annotation) if is_schema(m)] if found else [schema]
            found = keys(nested[0]).get(part) if nested else None
            if found is None:
                break
        if found is not None:
            return found
    raise TypeError(f"no main has the key {path}")


def fields_of(cls: type) -> Mapping[str, Key]:
    """Return the fields of a group, with their declarations."""
    return keys(cls)


def check_types(cls: type) -> None:
    """Compare the types of a group's fields, and of those inside of it, with the declared ones.

    Raises:
        TypeError: one is another.
    """
    for name, key in fields_of(cls).items():
        wanted = key.field.metadata.get("declared", key.annotation)
        if wanted != key.annotation:
            raise TypeError(f"{cls.__name__}.{name} is declared as {describe(wanted)}")
        for nested in (m for m in members(key.annotation) if is_schema(m)):
            check_types(nested)


class Settings:
    """A group of settings, frozen unless it is a copy made by `editable()`.

    An assignment is checked: an unknown name or a value of a wrong type raises `UserError`. What belongs
    together is checked as a whole, by `ConfigContainer.check`.
    """

    if not TYPE_CHECKING:  # type checkers know the fields

        def __setattr__(self, name: str, value: object) -> None:
            self._refuse_frozen()
            self._put(name, value, _caller())

    def __post_init__(self) -> None:
        """From here on nothing changes."""
        self._set_editable(False)

    def editable(self) -> Self:
        """Return a copy that can be changed."""
        made = copy.deepcopy(self)
        made._set_editable(True)
        return made

    def frozen(self) -> Self:
        """Return a copy that cannot be changed."""
        made = copy.deepcopy(self)
        made._set_editable(False)
        return made

    def leaves(self, above: str = "", dataset: str = "") -> Iterator[Leaf]:
        """Yield the settings of this group and those inside of it."""
        for name, key in fields_of(type(self)).items():
            value, path = getattr(self, name), f"{above}{name}"
            metadata = key.field.metadata
            if isinstance(value, Settings):
                yield from value.leaves(f"{path}.", metadata.get("dataset", "") or dataset)
            else:
                main_path = metadata.get("main_path")
                template = main_path.replace("{dataset}", dataset) if main_path else None
                yield Leaf(path, key, value, template, self.__dict__["_origins"].get(name))

    def tree(self) -> Values:
        """Return the settings as nested dictionaries, without those that only Python can hold."""
        found: Values = {}
        for name, key in fields_of(type(self)).items():
            value = getattr(self, name)
            if isinstance(value, Settings):
                found[name] = value.tree()
            elif not (key.field.metadata.get("python_only") or callable(value)):
                found[name] = copy.deepcopy(value)
        return found

    def update(
        self, values: Mapping[str, Any], origins: Mapping[str, str], changed_by: str, above: str = ""
    ) -> None:
        """Take over nested dictionaries of values that come from text; the types are checked.

        Args:
            values: by name; others stay.
            origins: by path, where values come from.
            changed_by: where those come from that `origins` does not name, if they differ.
            above: path of this group.

        Raises:
            UserError: the group is frozen.
        """
        self._refuse_frozen()
        for name, value in values.items():
            path, inner = f"{above}{name}", getattr(self, name, None)
            kind = self._group_type(name)
            if isinstance(value, Mapping) and kind is not None:
                if inner is None:
                    self._put(name, kind(), changed_by)
                    inner = getattr(self, name)
                inner.update(value, origins, changed_by, f"{path}.")
            elif path in origins or name not in fields_of(type(self)) or not same(inner, value):
                origin = next((origins[part] for part in _upwards(path) if part in origins), changed_by)
                self._put(name, value, origin, from_text=True)

    @classmethod
    def _group_type(cls, name: str) -> type | None:
        key = fields_of(cls).get(name)
        nested = [m for m in members(key.annotation) if is_schema(m)] if key else []
        return nested[0] if nested else None

    def _put(self, name: str, value: object, origin: str, *, from_text: bool = False) -> None:
        fields = fields_of(type(self))
        if name not in fields:
            hint = did_you_mean(name, fields)
            raise UserError(f"{type(self).__name__} has no setting '{name}'.{hint}")
        checked = _checked(fields[name], value, f"{type(self).__name__}.{name}", from_text=from_text)
        if isinstance(checked, Settings):
            # a copy, so that no two configs share one
            checked = copy.deepcopy(checked)
            checked._set_editable(self.__dict__.get("_editable") is not False)
        object.__setattr__(self, name, checked)
        origins = self.__dict__.setdefault("_origins", {})
        constructed = "_editable" not in self.__dict__
        if constructed and not isinstance(checked, Settings) and checked == fields[name].default():
            return
        origins[name] = origin

    def _refuse_frozen(self) -> None:
        if self.__dict__.get("_editable") is False:
            raise UserError(f"{type(self).__name__} is frozen: take config.editable(), a copy to change")

    def _set_editable(self, editable: bool) -> None:
        object.__setattr__(self, "_editable", editable)
        self.__dict__.setdefault("_origins", {})
        for value in list(self.__dict__.values()):
            if isinstance(value, Settings):
                value._set_editable(editable)


def same(value: object, other: object) -> bool:
    """Compare settings: of `validation.eval_iters` 1 is a batch, and 1.0 all of them."""
    return type(value) is type(other) and value == other


def _upwards(path: str) -> Iterator[str]:
    while path:
        yield path
        path = path.rpartition(".")[0]


def _checked(key: Key, value: Any, name: str, *, from_text: bool) -> Any:
    """Return a value if it is of the declared type: 1 is a float; "1" is one in text, but not in Python."""
    groups = [m for m in members(key.annotation) if is_schema(m)]
    if key.field.metadata.get("python_only"):
        if value is None or callable(value):
            return value
        raise UserError(f"{name}: expected a function or None, got {show(value)}")
    if groups:
        if isinstance(value, groups[0]) or (value is None and len(members(key.annotation)) > 1):
            return value
        raise UserError(f"{name}: expected {groups[0].__name__}(...), got {show(value)}")
    builder = Builder(literal=lambda _: True, partial=False)
    converted = builder.convert(key.annotation, value, (name,))
    if builder.problems:
        raise UserError(f"{name}: {builder.problems[0].message}")
    if not from_text and (converted != value or isinstance(converted, bool) != isinstance(value, bool)):
        raise UserError(f"{name}: expected {describe(key.annotation)}, got {show(value)}")
    return copy.deepcopy(converted)


def _caller() -> str:
    """Return the file and line of the code outside of this package's machinery that assigns."""
    frame = sys._getframe(2)
    while frame.f_back and frame.f_code.co_filename in (__file__, "<string>"):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
