"""What the commands of `ns` ask of recipes, in plain types: the launch side loads this by name."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from nemo_skills.training.recipes import overrides, registry
from nemo_skills.training.recipes.config import ConfigContainer


class Chosen(NamedTuple):
    """A recipe with its changes, as `ns train` needs it."""

    algo: str
    arguments: tuple[str, ...]
    """Of the main."""
    devices: int | None
    nodes: int | None


def choose(name: str, args: Sequence[str]) -> Chosen:
    """Return a recipe with changes.

    Raises:
        UserError: there is no such recipe, or an argument fits none of its keys.
    """
    config = changed(name, args)
    return Chosen(config.algo, tuple(config.main_overrides()), config.dist.devices, config.dist.num_nodes)


def changed(name: str, args: Sequence[str]) -> ConfigContainer:
    """Return the container of a recipe with changes."""
    config = registry.get_recipe(name)()
    overrides.override(config, args)
    return config


def listing() -> list[tuple[str, str]]:
    """Return the names of all recipes, and what each does on which GPUs."""
    return [(entry.name, entry.about) for entry in registry.entries().values()]


def origins(name: str, config: ConfigContainer) -> dict[str, str]:
    """Return for each setting where its value comes from."""
    folder = f"{Path(__file__).parent}/"
    found = {}
    for leaf in config.leaves():
        origin = leaf.origin or "default"
        file = origin.removeprefix(folder)
        found[leaf.path] = origin if file == origin else f"recipe {name} ({file})"
    return found


def exported(name: str, args: Sequence[str], form: str) -> str:
    """Return a recipe with changes as text: `yaml`, `overrides` of a recipe, or arguments of the `main`."""
    config = changed(name, args)
    if form == "yaml":
        return overrides.to_yaml(config)
    words = config.main_overrides() if form == "main" else overrides.to_overrides(config)
    return "\n".join(words) + "\n"


def help_of(config: ConfigContainer) -> dict[str, str]:
    """Return the line of help of each setting."""
    return {leaf.path: inspect.cleandoc(leaf.key.help_line) for leaf in config.leaves()}
