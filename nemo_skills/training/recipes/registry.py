"""Recipes by name."""

import functools
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from nemo_skills.core.errors import UserError, did_you_mean
from nemo_skills.training.recipes.config import ConfigContainer

VARIANTS = ("sft", "pretrain", "dpo", "lora")
"""A name without one of these means the first."""
_PACKAGE = "nemo_skills.training.recipes"
_FAMILIES = ("llama3", "qwen2_5", "qwen3")
_ALONE = ("tiny",)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A recipe in the registry."""

    name: str
    module: str
    variant: str
    size: str | None

    @property
    def function(self) -> Callable[[], ConfigContainer]:
        """What makes the container."""
        function = getattr(importlib.import_module(f"{_PACKAGE}.{self.module}"), f"{self.variant}_config")
        made: Callable[[], ConfigContainer] = (
            functools.partial(function, self.size) if self.size else function
        )
        return made

    @property
    def about(self) -> str:
        """One line: what it does, with which model, on which GPUs."""
        function = self.function
        made = function()
        text = inspect.getdoc(getattr(function, "func", function)) or ""
        gpus = f"{(made.dist.devices or 1) * (made.dist.num_nodes or 1)}xH100" if self.size else "a CPU"
        return f"{text.removesuffix('.')}: {made.model.restore_from_path}, on {gpus}"


@functools.cache
def entries() -> dict[str, Entry]:
    """Return all recipes by name."""
    return {entry.name: entry for entry in _entries()}


def names() -> tuple[str, ...]:
    """Return the names of all recipes."""
    return tuple(entries())


def get_recipe(name: str) -> Callable[[], ConfigContainer]:
    """Return the function that makes the container of a recipe.

    Args:
        name: of one that is listed, or `module:function` or `file.py:function` of your own.

    Raises:
        UserError: there is no such recipe.
    """
    if ":" in name:
        return functools.partial(_make_own, name)
    found = entries().get(name)
    if found is None:
        raise UserError(f"there is no recipe '{name}'.{did_you_mean(name, entries())} See ns recipe list.")
    return found.function


def _make_own(name: str) -> ConfigContainer:
    place, _, attribute = name.rpartition(":")
    file = Path(place) if place.endswith(".py") else None
    # a program's own folder comes first on the path: here it is that of the file, or the current one
    folder = str(file.absolute().parent) if file else os.getcwd()  # noqa: PTH109
    sys.path.insert(0, folder)
    try:
        module = _load_file(file) if file else importlib.import_module(place)
    except ImportError as error:
        raise UserError(f"recipe {name}: {place} cannot be imported: {error}") from None
    finally:
        sys.path.remove(folder)
    function = getattr(module, attribute, None)
    if not callable(function):
        hint = did_you_mean(attribute, [key for key, value in vars(module).items() if callable(value)])
        raise UserError(f"recipe {name}: {place} has no function '{attribute}'.{hint}")
    made = function()
    if not isinstance(made, ConfigContainer):
        raise UserError(f"recipe {name}: returned {type(made).__name__}, not a ConfigContainer")
    return made.editable()


def _load_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"_recipe_file_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise UserError(f"recipe file {path}: there is no such file")
    module = importlib.util.module_from_spec(spec)
    # where dataclasses in it look for their annotations
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _entries() -> Iterator[Entry]:
    for module in (*_ALONE, *_FAMILIES):
        sizes = [None] if module in _ALONE else list(importlib.import_module(f"{_PACKAGE}.{module}").SIZES)
        for size in sizes:
            for variant in VARIANTS:
                parts = (
                    module,
                    size.replace(".", "_") if size else None,
                    variant if variant != "sft" else None,
                )
                name = "_".join(part for part in parts if part)
                yield Entry(name=name, module=module, variant=variant, size=size)
