"""From a container to the keys of the mains, and back."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from nemo_skills.core import _compose, _grammar
from nemo_skills.core._convert import Builder
from nemo_skills.core._grammar import encode_override
from nemo_skills.core._schema import default_tree
from nemo_skills.core.errors import UserError
from nemo_skills.training.recipes.config import ConfigContainer
from nemo_skills.training.recipes.settings import MAINS, Leaf, Settings, Values, fields_of, same

_DPO_KEYS = {("model", "dpo"), ("trainer", "dpo")}


def main_overrides(config: ConfigContainer, always: Collection[str] = ()) -> list[str]:
    """Return the settings as arguments of the main; those that are its defaults are left out.

    Groups that may be absent are written whole: this is how one tells that they are there.

    Args:
        config: the settings.
        always: paths of settings that are written even so.
    """
    defaults = default_tree(MAINS[config.algo])
    found = []
    for leaf, path in _mapped(config):
        if leaf.key.field.metadata.get("python_only") and leaf.value is not None:
            raise UserError(f"{leaf.path}: a function cannot be passed on to another process")
        if path is None:
            continue
        is_default = same(leaf.value, _get(defaults, path))
        if not is_default or leaf.path in always or _in_optional_group(leaf):
            found.append(encode_override(path, leaf.value))
    return found


def from_main_overrides(overrides: Sequence[str]) -> ConfigContainer:
    """Return the container of arguments of a main, to be edited.

    Raises:
        UserError: something is no argument of the main.
    """
    line = _grammar.split(overrides)
    algo = "dpo" if any(override.path[:2] in _DPO_KEYS for override in line.overrides) else "sft"
    merged = _compose.overlay(MAINS[algo], default_tree(MAINS[algo]), line)
    if merged.problems:
        raise UserError("\n".join(merged.problems))
    config = ConfigContainer().editable()
    for holder, name, kind, prefix in list(_optional_groups(config)):
        if _get(merged.tree, prefix) is not None:
            setattr(holder, name, kind())
    values: Values = {}
    for leaf, path in _mapped(config):
        if path is not None:
            _set(values, leaf.path, _get(merged.tree, path))
    names = main_names(config)
    labels = {".".join(path): origin.label for path, origin in merged.origins.items()}
    config.update(values, {names[path]: label for path, label in labels.items() if path in names}, "default")
    return config


def main_config(config: ConfigContainer) -> Any:
    """Return the config of the main.

    Raises:
        UserError: something is missing or does not go together, in the names of the container.
    """
    schema = MAINS[config.algo]
    tree = default_tree(schema)
    for leaf, path in _mapped(config):
        if path is not None:
            _set(tree, path, leaf.value)
    builder = Builder(literal=lambda _: False, partial=False)
    made = builder.build(schema, tree)
    if not builder.problems:
        return made
    names = main_names(config)
    lines = []
    for problem in builder.problems:
        path = ".".join(problem.path)
        said = "is missing" if problem.kind == "missing" else problem.message
        qualified = problem.kind == "missing" or not _mentions(said, names)
        lines.append(f"{path}: {said}" if path and qualified else said)
    raise UserError(renamed("\n".join(lines), names))


def main_names(config: ConfigContainer) -> dict[str, str]:
    """Return the container's name of each key of the main."""
    return {path: leaf.path for leaf, path in _mapped(config) if path is not None}


def _mapped(config: ConfigContainer) -> Iterator[tuple[Leaf, str | None]]:
    for leaf in config.leaves():
        yield leaf, leaf.main_path.replace("{algo}", config.algo) if leaf.main_path else None


def _optional_groups(config: Settings) -> Iterator[tuple[Settings, str, type[Settings], str]]:
    """Yield holder, name, class and key of the main of each group that is absent."""
    for name in fields_of(type(config)):
        value, kind = getattr(config, name), config._group_type(name)
        if isinstance(value, Settings):
            yield from _optional_groups(value)
        elif kind is not None:
            main_path = next(iter(fields_of(kind).values())).field.metadata["main_path"]
            yield config, name, kind, main_path.rpartition(".")[0]


def _in_optional_group(leaf: Leaf) -> bool:
    return leaf.path.startswith(("dpo.", "model.architecture."))


def _mentions(message: str, names: Mapping[str, str]) -> bool:
    return any(name in message for name in names)


def renamed(message: str, names: Mapping[str, str]) -> str:
    """Write the container's names for the main's; those that say only the end of a key stay as they are."""
    pattern = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    return re.sub(rf"(?<![\w.])(?:{pattern})(?![\w])", lambda m: names[m[0]], message)


def _get(tree: Mapping[str, Any], path: str) -> Any:
    found: Any = tree
    for part in path.split("."):
        if not isinstance(found, Mapping):
            return None
        found = found.get(part)
    return found


def _set(tree: Values, path: str, value: Any) -> None:
    *above, last = path.split(".")
    for part in above:
        if not isinstance(tree.get(part), dict):
            tree[part] = {}
        tree = tree[part]
    tree[last] = value
