"""What a schema is: a dataclass whose fields are declared through `opt`. Needs the standard library only."""

import copy
import dataclasses
import enum
import functools
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union

# The word OmegaConf uses in files for "must be given"
MISSING: Any = "???"
KeyPath = tuple[str, ...]


def opt(default: Any, help_line: str, *, choices: Sequence[Any] = ()) -> Any:
    """Declare a field of a schema with its default and the line that `--help` shows for it.

    Args:
        default: The value, `MISSING` for a key that must be given, or a class or function that makes it.
        help_line: One line for people.
        choices: The only values allowed. Prefer `Literal[...]` as the field's type, which mypy checks too.
    """
    metadata = {"help": help_line, "choices": tuple(choices)}
    if isinstance(default, (list, dict, set)) or _is_schema_instance(default):
        return dataclasses.field(default_factory=lambda: copy.deepcopy(default), metadata=metadata)
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Key:
    """One field of a schema."""

    name: str
    annotation: Any
    field: "dataclasses.Field[Any]"

    @property
    def help_line(self) -> str:
        """The line for `--help`."""
        return str(self.field.metadata.get("help", ""))

    @property
    def choices(self) -> tuple[Any, ...]:
        """The only values allowed, or nothing."""
        return tuple(self.field.metadata.get("choices", ())) or _literals(self.annotation)

    def default(self) -> Any:
        """A fresh default value, `MISSING` where there is none."""
        if self.field.default is not dataclasses.MISSING:
            return self.field.default
        if self.field.default_factory is not dataclasses.MISSING:
            return self.field.default_factory()
        return MISSING


@functools.cache
def keys(schema: type) -> Mapping[str, Key]:
    """Return the keys of a schema by name."""
    hints = typing.get_type_hints(schema)
    fields = [f for f in dataclasses.fields(schema) if f.init]
    return {f.name: Key(name=f.name, annotation=hints[f.name], field=f) for f in fields}


def is_schema(annotation: Any) -> bool:
    """Tell whether an annotation is a dataclass, so that it has keys of its own."""
    return isinstance(annotation, type) and dataclasses.is_dataclass(annotation)


def _is_schema_instance(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def members(annotation: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the annotation alone."""
    if typing.get_origin(annotation) in (Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def _literals(annotation: Any) -> tuple[Any, ...]:
    literal = [m for m in members(annotation) if typing.get_origin(m) is Literal]
    return tuple(value for m in literal for value in typing.get_args(m))


def takes_only_text(annotation: Any) -> bool:
    """Tell whether a field holds nothing but text (or null): then typed text needs no interpretation."""
    return all(_is_text(m) for m in members(annotation) if m is not types.NoneType)


def _is_text(member: Any) -> bool:
    if typing.get_origin(member) is Literal:
        return all(isinstance(value, str) for value in typing.get_args(member))
    return isinstance(member, type) and issubclass(member, (str, enum.Enum, Path))


def annotation_at(schema: type, path: KeyPath) -> Any:
    """Return the type declared at a path, `Any` where nothing is declared."""
    annotation: Any = schema
    for part in path:
        annotation = _step(annotation, part)
    return annotation


def _step(annotation: Any, part: str) -> Any:
    for member in members(annotation):
        if is_schema(member):
            return keys(member)[part].annotation if part in keys(member) else Any
        arguments = typing.get_args(member)
        if typing.get_origin(member) in (list, tuple, Sequence) and arguments:
            return arguments[0]
        if typing.get_origin(member) in (dict, Mapping) and arguments:
            return arguments[1]
    return Any


def plain(value: Any) -> Any:
    """Turn a default into nested dictionaries, lists and scalars."""
    if _is_schema_instance(value):
        return {name: plain(getattr(value, name)) for name in keys(value.__class__)}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def default_tree(schema: type) -> dict[str, Any]:
    """Return the defaults of a schema as nested dictionaries, `MISSING` where a key must be given."""
    return {name: plain(key.default()) for name, key in keys(schema).items()}


def leaf_paths(schema: type, above: KeyPath = ()) -> list[KeyPath]:
    """Return the path of every key that is not itself a group of keys."""
    found: list[KeyPath] = []
    for name, key in keys(schema).items():
        nested = [m for m in members(key.annotation) if is_schema(m)]
        found += leaf_paths(nested[0], (*above, name)) if nested else [(*above, name)]
    return found


def describe(annotation: Any) -> str:
    """Return a type as people write it."""
    if annotation is Any:
        return "any"
    if is_schema(annotation):
        return f"keys of {annotation.__name__}"
    if annotation is types.NoneType:
        return "null"
    if len(members(annotation)) > 1:
        return " | ".join(describe(m) for m in members(annotation))
    if typing.get_origin(annotation) is Literal:
        return " | ".join(map(str, typing.get_args(annotation)))
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return " | ".join(annotation.__members__)
    origin = typing.get_origin(annotation)
    if origin is not None:
        inner = ", ".join(describe(a) for a in typing.get_args(annotation) if a is not Ellipsis)
        return f"{'dict' if origin in (dict, Mapping) else 'list'}[{inner}]"
    return str(getattr(annotation, "__name__", annotation))


def is_declared(schema: type, path: KeyPath) -> bool:
    """Tell whether a path is a key of the schema (rather than a free-form one below such a key)."""
    above = annotation_at(schema, path[:-1])
    return any(is_schema(m) and path[-1] in keys(m) for m in members(above))
