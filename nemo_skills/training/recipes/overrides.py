"""Changing a container by files and overrides, and writing it as such."""

import functools
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nemo_skills.core import _compose, _grammar
from nemo_skills.core._grammar import encode_override, escape_all
from nemo_skills.core.errors import UserError
from nemo_skills.training.recipes.config import Architecture, ConfigContainer, DpoConfig, ModelConfig
from nemo_skills.training.recipes.main_keys import main_names
from nemo_skills.training.recipes.settings import Values

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = ["apply_overrides", "override", "parse_hydra_overrides", "to_omegaconf", "to_overrides", "to_yaml"]

_APPLIED = "apply_overrides"


def override(config: ConfigContainer, args: Sequence[str]) -> None:
    """Change a container by Hydra-style arguments, and by the file that --config-path and --config-name name.

    Args:
        config: an editable one.
        args: `train.train_iters=20`, with or without `++` in front; `~train.train_iters` is as it was before.

    Raises:
        UserError: names each unknown key, with the nearest that there is, and each wrong type.
    """
    merged = _overlaid(escape_all(config.tree()), args)
    origins = {".".join(path): origin.label for path, origin in merged.origins.items()}
    config.update(merged.tree, origins, "a value that others refer to")


def to_omegaconf(config: ConfigContainer) -> "tuple[DictConfig, Values]":
    """Return a container as OmegaConf's, and by their paths what that cannot hold, such as functions."""
    from omegaconf import OmegaConf

    held = OmegaConf.create(escape_all(config.tree()))
    excluded = {
        leaf.path: leaf.value
        for leaf in config.leaves()
        if callable(leaf.value) or (leaf.key.field.metadata.get("python_only") and leaf.value is not None)
    }
    return held, excluded


def parse_hydra_overrides(held: "DictConfig", args: Sequence[str]) -> "DictConfig":
    """Return what `to_omegaconf` made, changed by Hydra-style arguments.

    Raises:
        UserError: names each unknown key, with the nearest that there is, and each wrong type.
    """
    from omegaconf import OmegaConf

    tree: Any = OmegaConf.to_container(held, resolve=False)
    made: DictConfig = OmegaConf.create(escape_all(_overlaid(tree, args).tree))
    return made


def apply_overrides(
    config: ConfigContainer, values: Mapping[str, Any], excluded: Mapping[str, Any] | None = None
) -> None:
    """Take over values, nested by group; those that are not named stay, and so do functions.

    Args:
        config: an editable one.
        values: as `OmegaConf.to_container(…, resolve=True)` returns them.
        excluded: what `to_omegaconf` could not hold.

    Raises:
        UserError: names each unknown key, with the nearest that there is, and each wrong type.
    """
    problems = _compose.mismatches(type(config), config.tree(), values)
    if problems:
        raise UserError("\n".join(problems))
    config.update(values, {}, _APPLIED)
    for path, value in (excluded or {}).items():
        *above, name = path.split(".")
        setattr(functools.reduce(getattr, above, config), name, value)


def _overlaid(tree: Values, args: Sequence[str]) -> _compose.Merged:
    line = _grammar.split(args)
    merged = _compose.overlay(ConfigContainer, tree, line)
    if merged.problems:
        raise UserError("\n".join(map(_with_own_name, merged.problems)))
    return merged


def _with_own_name(problem: str) -> str:
    """Tell those who write a key of the main how a container calls it."""
    found = re.match(r"(\+*([\w.]+)): unknown key", problem)
    for dpo in (None, DpoConfig()):
        names = main_names(ConfigContainer(dpo=dpo, model=ModelConfig(architecture=Architecture())))
        if found and found[2] in names:
            return f"{found[1]}: unknown key. In recipes it is called '{names[found[2]]}'."
    return problem


def to_overrides(config: ConfigContainer) -> list[str]:
    """Return arguments that make another container equal to this one, whatever that was."""
    found = []
    for leaf in config.leaves():
        if isinstance(leaf.value, Mapping):
            # otherwise its keys would be merged with those that are there
            found.append(encode_override(leaf.path, None))
        if not leaf.key.field.metadata.get("python_only"):
            found.append(encode_override(leaf.path, leaf.value))
    return found


def to_yaml(config: ConfigContainer) -> str:
    """Return a container as YAML, for `override` or OmegaConf to read."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(to_omegaconf(config)[0])
