"""From the list of processors in a config to instances, with every mistake named beforehand."""

import importlib
import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from nemo_skills.core._convert import Builder, Problem
from nemo_skills.core.errors import UserError, did_you_mean
from nemo_skills.training.data_preparation_utils.base import Processor
from nemo_skills.training.data_preparation_utils.running import Step

_OWN_KEYS = ("_target_", "name", "enabled")
_WORD_START = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_UTILS = __name__.rpartition(".")[0]


def build_steps(items: Sequence[Mapping[str, Any]]) -> list[Step]:
    """Return the steps that are enabled, numbered from 1.

    An item has `_target_`, the parameters of that class, and if wanted `name` (for overrides and the report)
    and `enabled: false`.

    Raises:
        UserError: one line for each unknown class or parameter, missing or wrong value.
    """
    problems: list[str] = []
    steps: list[Step] = []
    names: set[str] = set()
    for index, item in enumerate(items):
        where = f"processors.{item.get('name', index)}"
        try:
            target = find_class(item.get("_target_"), where)
            enabled = item.get("enabled", True)
            if not isinstance(enabled, bool):
                raise UserError(f"{where}.enabled: expected true or false, got {enabled!r}")
            processor = _make(target, item, where)
        except UserError as error:
            problems.append(str(error))
            continue
        name = _unique(str(item.get("name") or _WORD_START.sub("_", target.__name__).lower()), names)
        if enabled and processor.active:
            steps.append(Step(len(steps) + 1, name, processor))
    if problems:
        raise UserError("\n".join(problems))
    return steps


def find_class(target: object, where: str) -> type[Processor]:
    """Return the class that `_target_` names; ours need only their module, such as `filters.Where`."""
    if not isinstance(target, str) or "." not in target:
        raise UserError(f"{where}._target_: needs the name of a class, such as {_UTILS}.filters.Where")
    module_name, _, name = target.rpartition(".")
    module = _import(module_name, where)
    found = getattr(module, name, None)
    if found is None:
        classes = [n for n, o in vars(module).items() if inspect.isclass(o) and issubclass(o, Processor)]
        raise UserError(f"{where}._target_: no {name} in {module.__name__}.{did_you_mean(name, classes)}")
    if not (inspect.isclass(found) and issubclass(found, Processor)) or inspect.isabstract(found):
        raise UserError(f"{where}._target_: {target} is no processor (a class derived from {_UTILS}.base)")
    return found


def _import(name: str, where: str) -> Any:
    for candidate in (f"{_UTILS}.{name}", name):
        try:
            return importlib.import_module(candidate)
        except ModuleNotFoundError as error:
            # a module that is there but lacks something it imports is another matter
            if error.name is None or not f"{candidate}.".startswith(f"{error.name}."):
                raise UserError(f"{where}._target_: {name} cannot be imported: {error}") from None
    ours = [path.stem for path in Path(__file__).parent.glob("*.py")]
    hint = did_you_mean(name.rpartition(".")[2], ours)
    raise UserError(f"{where}._target_: there is no module {name}.{hint}")


def _make(target: type[Processor], item: Mapping[str, Any], where: str) -> Processor:
    """Return an instance; parameters of a dataclass are converted to their types."""
    given = {key: value for key, value in item.items() if key not in _OWN_KEYS}
    parameters = inspect.signature(target).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        unknown = [key for key in given if key not in parameters]
        if unknown:
            known = [*parameters, "enabled"]
            lines = [f"{where}.{key}: unknown key.{did_you_mean(key, known)}" for key in unknown]
            raise UserError("\n".join([*lines, f"{target.__name__} has: {', '.join(parameters) or 'none'}"]))
    declared: object = target
    if not is_dataclass(declared):
        return _instantiate(target, given, where)
    builder = Builder(literal=lambda _: False, partial=False)
    built = builder.build(target, given)
    if builder.problems:
        raise UserError("\n".join(_described(where, problem) for problem in builder.problems))
    assert isinstance(built, Processor)
    return built


def _described(where: str, problem: Problem) -> str:
    place = ".".join((where, *problem.path))
    if problem.kind == "missing":
        return f"{place}: missing, give ++{place}=... ({problem.message})"
    return f"{place}: {problem.message}"


def _instantiate(target: type[Processor], given: Mapping[str, Any], where: str) -> Processor:
    """Leave a class that declares no types to Hydra, which also makes what is nested in its parameters."""
    from hydra.errors import HydraException
    from hydra.utils import instantiate

    try:
        made = instantiate(
            {"_target_": f"{target.__module__}.{target.__qualname__}", "_convert_": "all", **given}
        )
    except HydraException as error:
        raise UserError(f"{where}: {error.__cause__ or error}") from error
    assert isinstance(made, Processor)
    return made


def _unique(name: str, names: set[str]) -> str:
    """Return a name that no step before has."""
    number = 1
    while (candidate := name if number == 1 else f"{name}_{number}") in names:
        number += 1
    names.add(candidate)
    return candidate
