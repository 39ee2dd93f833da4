"""NeMo-Run's `run.Config` and `run.Partial` as YAML and for Hydra, and back, without loss.

A `run.Config(Model, size=2)` is

    _target_: package.Model
    size: 2

in YAML, with `_partial_: true` for a `run.Partial`: the text that NeMo-Run's own serializer writes, which
`hydra.utils.instantiate` builds, too. What YAML does not have is written as a call that both understand, such
as `_target_: builtins.tuple`; a function, class, dtype or member of an enum as its import path. Values that
are shared stay shared, by YAML's anchors.
"""

import dataclasses
import enum
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, cast

import fiddle as fdl
import nemo_run as run
import yaml

from nemo_skills.core.errors import UserError
from nemo_skills.training.recipes.import_paths import import_path, locate

Tree: TypeAlias = "dict[Any, Tree] | list[Tree] | str | int | float | bool | bytes | None"
"""What YAML and OmegaConf have."""
Buildable: TypeAlias = "run.Config[Any] | run.Partial[Any]"

_TARGET, _PARTIAL, _ARGS, _CALL = "_target_", "_partial_", "_args_", "_call_"
_CONVERT, _RECURSIVE = "_convert_", "_recursive_"
_RESERVED = {_TARGET, _PARTIAL, _ARGS, _CALL, _CONVERT, _RECURSIVE}
_HYDRA_OBJECT, _HYDRA_TEXT = "hydra.utils.get_object", "builtins.str.join"
_MISSING = "???"
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


def to_yaml(value: Any) -> str:
    """Return a configuration as YAML, see `to_tree`."""
    return yaml.dump(to_tree(value), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def from_yaml(text: str) -> Any:
    """Return the configuration that `to_yaml` wrote, see `from_tree`."""
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"not valid YAML: {error}") from None
    return from_tree(tree)


def to_hydra(value: Any) -> dict[Any, Tree]:
    """Return what `hydra.utils.instantiate` builds as `fiddle.build` builds `value`.

    Hydra does not know what is shared: it builds a value once for each place.

    Raises:
        UserError: see `to_tree`; or `value` is no `run.Config` or `run.Partial`.
    """
    if not isinstance(value, fdl.Buildable):
        raise UserError(f"Hydra instantiates a run.Config or run.Partial, not a {type(value).__name__}.")
    tree = cast(dict[Any, Tree], _in_hydra(to_tree(value)))
    # else lists would arrive as OmegaConf's
    return {_TARGET: tree.pop(_TARGET), _CONVERT: "all", **tree}


def from_hydra(config: Any) -> Any:
    """Return the configuration of a Hydra config (a mapping or DictConfig), its interpolations resolved."""
    from omegaconf import OmegaConf

    return from_tree(OmegaConf.to_container(OmegaConf.create(config), resolve=True))


def configured(value: Any) -> Any:
    """Return dataclasses as `run.Config` of all their fields, which code can change before they are built.

    Frozen ones, too, and inside of lists, tuples, dicts and other configurations. What was a plain
    `fiddle.Config`, as inside of what `run.autoconvert` returns, becomes a `run.Config`.
    """
    return _Configurer().value(value)


def by_value(function: Callable[..., Any], kind: type[Buildable], *args: Any, **kwargs: Any) -> Buildable:
    """Convert what a function returns: for `run.autoconvert(function, to_buildable_fn=by_value)`.

    Unlike NeMo-Run's own way, which reads the function's source, this allows any code in it.
    """
    found = configured(function(*args, **kwargs))
    if not isinstance(found, fdl.Buildable):
        raise UserError(f"{function.__qualname__} returned a {type(found).__name__}, not a dataclass.")
    return cast(Buildable, fdl.cast(kind, found))


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
            return {_TARGET: path, _CALL: False}
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
        tree: dict[Any, Tree] = {_TARGET: path}
        if isinstance(value, fdl.Partial):
            tree[_PARTIAL] = True
        given = value.__arguments__
        if taken := _RESERVED & given.keys():
            raise UserError(f"{where}: {path} has a parameter {sorted(taken)[0]}, a name that Hydra keeps.")
        positional = _positional(value)
        if positional:
            tree[_ARGS] = [self.tree(item, f"{where}[{i}]") for i, item in enumerate(positional)]
        for name, item in given.items():
            if isinstance(name, str) and name not in _first_names(value, len(positional)):
                tree[name] = self.tree(item, f"{where}.{name}")
        if _is_literal(target) and tree.keys() == {_TARGET, _ARGS}:
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
    return {_TARGET: cast(str, import_path(kind)), _ARGS: [argument]}


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
        if _TARGET not in tree:
            return {key: self.value(item, f"{where}.{key}") for key, item in tree.items()}
        target = tree[_TARGET]
        if target == _HYDRA_OBJECT:
            return locate(tree["path"])
        if target == _HYDRA_TEXT:
            return str.join(*tree[_ARGS])
        found = locate(target) if isinstance(target, str) else target
        if tree.get(_CALL) is False:
            return found
        args = [self.value(item, f"{where}[{i}]") for i, item in enumerate(tree.get(_ARGS, ()))]
        if _is_literal(found) and tree.keys() == {_TARGET, _ARGS}:
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


class _Configurer:
    def __init__(self) -> None:
        self._seen: dict[int, tuple[Any, Any]] = {}

    def value(self, value: Any) -> Any:
        if not isinstance(value, (fdl.Buildable, list, dict)):
            return self._converted(value)
        # these may change, and so remain the same in all places
        if id(value) not in self._seen:
            self._seen[id(value)] = (value, self._converted(value))
        return self._seen[id(value)][1]

    def _converted(self, value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            given = {f.name: self.value(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
            return run.Config(type(value), bind_args=False, **given)
        if isinstance(value, (fdl.Config, fdl.Partial)):
            kind = run.Partial if isinstance(value, fdl.Partial) else run.Config
            copied = fdl.cast(kind, value)
            for name in list(copied.__arguments__):
                _set(copied, name, self.value(value.__arguments__[name]))
            return copied
        if type(value) in (list, tuple):
            return type(value)(map(self.value, value))
        if type(value) is dict:
            return {key: self.value(item) for key, item in value.items()}
        return value


def _set(buildable: Buildable, name: str | int, value: Any) -> None:
    if isinstance(name, int):
        buildable[name] = value
    else:
        setattr(buildable, name, value)


def _in_hydra(tree: Tree) -> Tree:
    """Say the same to Hydra: it has another word for import paths, and reads `${…}` and `???` in texts."""
    if tree == _MISSING:
        return _joined("?", [""] * (len(_MISSING) + 1))
    if isinstance(tree, str):
        # escaping does not help: Hydra resolves interpolations twice
        parts = re.split(r"\$(?=\{)", tree)
        return _joined("$", parts) if len(parts) > 1 else tree
    if isinstance(tree, list):
        return [_in_hydra(item) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if tree.get(_CALL) is False:
        return {_TARGET: _HYDRA_OBJECT, "path": tree[_TARGET]}
    return {key: _in_hydra(item) for key, item in tree.items()}


def _joined(separator: str, parts: Sequence[str]) -> Tree:
    return {_TARGET: _HYDRA_TEXT, _ARGS: [separator, list(parts)]}


class _Dumper(yaml.SafeDumper):
    """Quotes what OmegaConf's loader, unlike PyYAML's, would take for a number, such as 1e5."""


_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)
