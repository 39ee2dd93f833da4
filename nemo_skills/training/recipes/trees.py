"""Configurations of NeMo-Run as plain values, and back."""

import enum
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, cast

import fiddle as fdl
import nemo_run as run

from nemo_skills.core.errors import UserError
from nemo_skills.training.recipes.import_paths import import_path, locate

Tree: TypeAlias = "dict[Any, Tree] | list[Tree] | str | int | float | bool | bytes | None"
"""What YAML and OmegaConf have."""
Buildable: TypeAlias = "run.Config[Any] | run.Partial[Any]"

TARGET, _PARTIAL, ARGS, CALL = "_target_", "_partial_", "_args_", "_call_"
CONVERT, _RECURSIVE = "_convert_", "_recursive_"
_RESERVED = {TARGET, _PARTIAL, ARGS, CALL, CONVERT, _RECURSIVE}
HYDRA_OBJECT, HYDRA_TEXT = "hydra.utils.get_object", "builtins.str.join"
_SCALARS = (str, int, float, bool, bytes, type(None))
_KEYS = (str, int, float, bool)
_LITERALS: dict[type, Callable[[Any], Any]] = {
    tuple: list,
    set: lambda items: sorted(items, key=repr),
    frozenset: lambda items: sorted(items, key=repr),
    pathlib.PosixPath: str,
    pathlib.PurePosixPath: str,
}
"""Types that YAML does not have, with what each is made from."""


def to_tree(value: Any) -> Tree:
    """Return a configuration as plain values, which YAML can hold.

    Args:
        value: a `run.Config` or `run.Partial`, or lists, dicts and other values with such inside.

    Raises:
        UserError: names a value that has no import path and is no plain value either.
    """
    return _Writer().tree(value, "config")


def from_tree(tree: Any) -> Any:
    """Return the configuration that `to_tree`, NeMo-Run or Hydra would write like this.

    Raises:
        UserError: names an import path that leads nowhere, or an argument that the target does not take.
    """
    return _Reader().value(tree, "config")


class _Writer:
    def __init__(self) -> None:
        # what is in two places is one object in the tree, too; values stay alive with their ids
        self._seen: dict[int, tuple[Any, Tree]] = {}

    def tree(self, value: Any, where: str) -> Tree:
        if type(value) in _SCALARS:
            return cast(Tree, value)
        if id(value) in self._seen:
            return self._seen[id(value)][1]
        tree = self._container(value, where)
        if value != ():
            self._seen[id(value)] = (value, tree)
        return tree

    def _container(self, value: Any, where: str) -> Tree:
        if isinstance(value, fdl.Buildable):
            return self._buildable(value, where)
        if type(value) is list:
            return [self.tree(item, f"{where}[{i}]") for i, item in enumerate(value)]
        if type(value) is dict:
            return self._mapping(value, where)
        if type(value) in _LITERALS:
            return _call(type(value), self.tree(_LITERALS[type(value)](value), where))
        if path := import_path(value):
            return {TARGET: path, CALL: False}
        if isinstance(value, enum.Flag):
            return _call(type(value), self.tree(value.value, where))
        hint = "it has no import path" if callable(value) else "use a run.Config of it"
        raise UserError(f"{where}: {value!r} (a {type(value).__name__}) cannot be written: {hint}.")

    def _mapping(self, value: dict[Any, Any], where: str) -> Tree:
        items = {key: self.tree(item, f"{where}[{key!r}]") for key, item in value.items()}
        if all(type(key) in _KEYS for key in items) and not _RESERVED & items.keys():
            return cast(Tree, items)
        return _call(dict, [[self.tree(key, where), item] for key, item in items.items()])

    def _buildable(self, value: fdl.Buildable[Any], where: str) -> Tree:
        kind, target = type(value), value.__fn_or_cls__
        if not isinstance(value, (fdl.Config, fdl.Partial)) or isinstance(value, fdl.ArgFactory):
            raise UserError(f"{where}: a {kind.__name__} cannot be written; use run.Config or run.Partial.")
        path = import_path(target)
        if path is None:
            raise UserError(f"{where}: {target!r} cannot be written: it has no import path.")
        tree: dict[Any, Tree] = {TARGET: path}
        if isinstance(value, fdl.Partial):
            tree[_PARTIAL] = True
        given = value.__arguments__
        if taken := _RESERVED & given.keys():
            raise UserError(f"{where}: {path} has a parameter {sorted(taken)[0]}, a name that Hydra keeps.")
        positional = _positional(value)
        if positional:
            tree[ARGS] = [self.tree(item, f"{where}[{i}]") for i, item in enumerate(positional)]
        for name, item in given.items():
            if isinstance(name, str) and name not in _first_names(value, len(positional)):
                tree[name] = self.tree(item, f"{where}.{name}")
        if _is_literal(target) and tree.keys() == {TARGET, ARGS}:
            # Hydra's default: it only says that this is no literal
            tree[_RECURSIVE] = True
        return tree


def _positional(value: fdl.Buildable[Any]) -> list[Any]:
    """Return the arguments up to the last one that has no name, as fiddle numbers them."""
    numbers = [key for key in value.__arguments__ if isinstance(key, int)]
    return [value[i] for i in range(max(numbers) + 1)] if numbers else []


def _first_names(value: fdl.Buildable[Any], count: int) -> list[str]:
    """Return the names of so many of the first parameters."""
    return list(value.__signature_info__.parameters)[:count]


def _call(kind: type, argument: Tree) -> Tree:
    return {TARGET: cast(str, import_path(kind)), ARGS: [argument]}


def _is_literal(target: Any) -> bool:
    return target in (*_LITERALS, dict) or (isinstance(target, type) and issubclass(target, enum.Enum))


class _Reader:
    def __init__(self) -> None:
        self._seen: dict[int, Any] = {}

    def value(self, tree: Any, where: str) -> Any:
        if not isinstance(tree, (dict, list)):
            return tree
        if id(tree) not in self._seen:
            self._seen[id(tree)] = self._container(tree, where)
        return self._seen[id(tree)]

    def _container(self, tree: Any, where: str) -> Any:
        if isinstance(tree, list):
            return [self.value(item, f"{where}[{i}]") for i, item in enumerate(tree)]
        if TARGET not in tree:
            return {key: self.value(item, f"{where}.{key}") for key, item in tree.items()}
        target = tree[TARGET]
        if target == HYDRA_OBJECT:
            return locate(tree["path"])
        if target == HYDRA_TEXT:
            return str.join(*tree[ARGS])
        found = locate(target) if isinstance(target, str) else target
        if tree.get(CALL) is False:
            return found
        args = [self.value(item, f"{where}[{i}]") for i, item in enumerate(tree.get(ARGS, ()))]
        if _is_literal(found) and tree.keys() == {TARGET, ARGS}:
            return found(*args)
        kwargs = {
            key: self.value(item, f"{where}.{key}") for key, item in tree.items() if key not in _RESERVED
        }
        kind = run.Partial if tree.get(_PARTIAL) else run.Config
        return _build(kind, found, args, kwargs, where)


def _build(
    kind: type[Buildable], target: Any, args: Sequence[Any], kwargs: Mapping[str, Any], where: str
) -> Buildable:
    try:
        built = kind(target, *args, bind_args=False, **kwargs)
    except TypeError as error:
        raise UserError(f"{where}: {import_path(target) or target}: {error}.") from None
    # fiddle may add defaults of its own
    known = {*kwargs, *_first_names(built, len(args))}
    for name in [key for key in built.__arguments__ if isinstance(key, str) and key not in known]:
        delattr(built, name)
    return built
