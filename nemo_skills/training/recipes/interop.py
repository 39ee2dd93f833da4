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
import re
from collections.abc import Callable, Sequence
from typing import Any, cast

import fiddle as fdl
import nemo_run as run
import yaml

from nemo_skills.core.errors import UserError
from nemo_skills.training.recipes.config import ConfigContainer
from nemo_skills.training.recipes.overrides import override
from nemo_skills.training.recipes.registry import get_recipe
from nemo_skills.training.recipes.run import train
from nemo_skills.training.recipes.trees import (
    ARGS,
    CALL,
    CONVERT,
    HYDRA_OBJECT,
    HYDRA_TEXT,
    TARGET,
    Buildable,
    Tree,
    from_tree,
    to_tree,
)

__all__ = [
    "as_partial",
    "by_value",
    "configured",
    "from_hydra",
    "from_tree",
    "from_yaml",
    "to_hydra",
    "to_tree",
    "to_yaml",
]

_MISSING = "???"


def to_yaml(value: Any, *, hydra: bool = False) -> str:
    """Return a configuration as YAML, see `to_tree`; with `hydra` in the words of `to_hydra`."""
    tree = to_hydra(value) if hydra else to_tree(value)
    # OmegaConf and allow_unicode lose some line breaks of Unicode
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False)


def from_yaml(text: str) -> Any:
    """Return the configuration that `to_yaml` wrote, see `from_tree`.

    Its import paths are imported, which runs code, and called when it is built: trust who wrote it.
    """
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
    return {TARGET: tree.pop(TARGET), CONVERT: "all", **tree}


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


def as_partial(recipe: str | ConfigContainer, overrides: Sequence[str] = ()) -> run.Partial[None]:
    """Return a recipe as NeMo-Run's configuration of a training, which trains when it is built and called.

    Its settings are below `.config`, such as `.config.train.train_iters`; they are checked when it is built.

    Args:
        recipe: name, or a container, of which a copy is taken.
        overrides: Hydra-style changes.

    Raises:
        UserError: there is no such recipe, or an override fits none of its keys.
    """
    container = get_recipe(recipe)() if isinstance(recipe, str) else recipe.editable()
    override(container, overrides)
    return run.Partial(train, config=configured(container), bind_args=False)


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
    if tree.get(CALL) is False:
        return {TARGET: HYDRA_OBJECT, "path": tree[TARGET]}
    return {key: _in_hydra(item) for key, item in tree.items()}


def _joined(separator: str, parts: Sequence[str]) -> Tree:
    return {TARGET: HYDRA_TEXT, ARGS: [separator, list(parts)]}


class _Dumper(yaml.SafeDumper):
    """Quotes what OmegaConf's loader, unlike PyYAML's, would take for a number, such as 1e5."""


_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)
