"""Families of models that can be converted: each is a file with a table of rules called `FAMILY`."""

import functools
import importlib
import pkgutil

from nemo_skills.conversion.families._table import Family, HFTensor, Rule
from nemo_skills.core.errors import UserError, did_you_mean

__all__ = ["Family", "HFTensor", "Rule", "all_families", "find_families", "find_family"]


@functools.cache
def all_families() -> dict[str, Family]:
    """Return all families by name."""
    modules = (m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))
    found = [importlib.import_module(f"{__name__}.{name}").FAMILY for name in sorted(modules)]
    return {family.name: family for family in found}


def find_families(model_type: str) -> list[Family]:
    """Return the families that a user may mean by a name: `qwen` is Qwen 2 or 3.

    Raises:
        UserError: there is none.
    """
    families = all_families().values()
    found = [family for family in families if model_type in (family.name, *family.aliases)]
    if not found:
        names = [name for family in families for name in (family.name, *family.aliases)]
        known = ", ".join(all_families())
        near = did_you_mean(model_type, names)
        raise UserError(f"model_type={model_type} is not known here; known are {known}.{near}")
    return found


def find_family(model_type: str, given: str | None, where: str) -> Family:
    """Return the family that a model's config names, if the user meant that one.

    Args:
        model_type: What the config says.
        given: What the user says, if anything.
        where: The config.

    Raises:
        UserError: the family is not supported, or the user says another.
    """
    if model_type not in all_families():
        known = ", ".join(all_families())
        near = did_you_mean(model_type, all_families())
        raise UserError(f"{where}: models of type {model_type} cannot be converted, only {known}.{near}")
    family = all_families()[model_type]
    if given is not None and family not in find_families(given):
        raise UserError(f"model_type={given} was given, but {where} says {model_type}")
    return family
