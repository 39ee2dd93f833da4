"""What the commands of `ns` ask of recipes, in plain types: the launch side loads this by name."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from nemo_skills.core._grammar import encode, split
from nemo_skills.core.hydra import MISSING
from nemo_skills.training.recipes import overrides, registry
from nemo_skills.training.recipes.config import ConfigContainer, DpoConfig
from nemo_skills.training.recipes.main_keys import main_names, main_overrides, renamed


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
    typed = {override.key for override in split(args).overrides}
    arguments = main_overrides(config, typed)
    # -1: as many as there are
    devices, nodes = (
        count if count and count > 0 else None for count in (config.dist.devices, config.dist.num_nodes)
    )
    return Chosen(config.algo, tuple(arguments), devices, nodes)


def changed(name: str, args: Sequence[str]) -> ConfigContainer:
    """Return the container of a recipe with changes."""
    config = registry.get_recipe(name)()
    overrides.override(config, args)
    return config


def in_names_of_recipes(message: str, algo: str) -> str:
    """Return what a main says of its keys in the names that recipes have for them."""
    config = ConfigContainer(dpo=DpoConfig() if algo == "dpo" else None)
    return renamed(message, main_names(config))


def listing() -> list[tuple[str, str]]:
    """Return the names of all recipes, and what each does on which GPUs."""
    return [(entry.name, entry.about) for entry in registry.entries().values()]


def shown(name: str, args: Sequence[str], *, origin: bool) -> list[tuple[str, str, str]]:
    """Return key, value and help of each setting of a recipe with changes; or where its value comes from."""
    rows = []
    for leaf in changed(name, args).leaves():
        about = _origin(name, leaf.origin) if origin else inspect.cleandoc(leaf.key.help_line)
        value = "(to be given)" if leaf.value == MISSING else encode(leaf.value)
        rows.append((leaf.path, value, about))
    return rows


def memory_lines(name: str, args: Sequence[str], gpus: str) -> list[str]:
    """Return what each process of a recipe with changes needs, line by line.

    Raises:
        UserError: `gpus` is not like 8xH100, or they cannot be divided as the recipe wants.
    """
    from nemo_skills.training.recipes import memory

    config, kind = changed(name, args), memory.Gpus.parse(gpus)
    found = memory.estimate(config, kind)
    return [f"memory of each process on {gpus}, estimated:", *found.lines(), memory.verdict(found, kind)]


def _origin(name: str, origin: str | None) -> str:
    folder = f"{Path(__file__).parent}/"
    if origin and origin.startswith(folder):
        return f"recipe {name} ({origin.removeprefix(folder)})"
    return origin or "default"


def exported(name: str, args: Sequence[str], form: str) -> str:
    """Return a recipe with changes as text: `yaml`, `overrides` of any recipe, or arguments of the `main`."""
    config = changed(name, args)
    if form == "yaml":
        return overrides.to_yaml(config)
    words = config.main_overrides() if form == "main" else overrides.to_overrides(config)
    return "\n".join(words) + "\n"
