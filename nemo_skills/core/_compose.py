"""Defaults, then a config file, then overrides: merged, interpolated and checked against a schema."""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nemo_skills.core import _grammar, _schema
from nemo_skills.core._config_file import find_file, read_file
from nemo_skills.core._convert import UNKNOWN, Builder, Problem
from nemo_skills.core._grammar import CommandLine, Override
from nemo_skills.core._schema import KeyPath
from nemo_skills.core.errors import UserError, did_you_mean


class Origin(NamedTuple):
    """Where a value came from: how to name the place, and whether it was typed as an override."""

    label: str
    typed: bool


class Checked(NamedTuple):
    """An instance of the schema, or what is wrong (one line each)."""

    config: Any
    problems: list[str]


class Merged(NamedTuple):
    """Values over which a file and overrides were laid, and what is wrong with them (one line each)."""

    tree: dict[Any, Any]
    origins: Mapping[KeyPath, Origin]
    """Of what was laid over."""
    problems: list[str]


class Draft:
    """A tree of values being put together, and where each of them came from."""

    def __init__(self, schema: type, tree: Mapping[str, Any] | None = None) -> None:
        self._schema = schema
        self._defaults = _schema.default_tree(schema) if tree is None else dict(tree)
        self.tree: dict[Any, Any] = copy.deepcopy(self._defaults)
        self.origins: dict[KeyPath, Origin] = {}
        self.lines: list[str] = []

    def override(self, override: Override) -> None:
        """Apply one override."""
        label = f"{override.sign}{override.key}"
        if override.sign == "~" and override.value is not None:
            self.lines.append(f"{label}={override.value}: to remove a key write {label}")
            return
        if override.sign == "~":
            self._remove(override.path, label)
            return
        value = _grammar.read_value(override.value or "", _schema.annotation_at(self._schema, override.path))
        self._set(self.tree, override.path, value)
        self.origins[override.path] = Origin(label, typed=True)

    def file(self, content: Mapping[Any, Any], lines: Mapping[KeyPath, int], name: str) -> None:
        """Merge the content of a config file."""
        _merge(self.tree, content)
        for path in _leaves(content):
            line = next((lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in lines), 1)
            self.origins[path] = Origin(f"{name}:{line}: {'.'.join(path)}", typed=False)

    def origin(self, path: KeyPath) -> tuple[KeyPath, Origin] | None:
        """Return the most precise known origin of a path."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.origins:
                return path[:length], self.origins[path[:length]]
        return None

    def typed(self, path: KeyPath) -> bool:
        """Tell whether exactly this key was given as an override."""
        return path in self.origins and self.origins[path].typed

    def below(self, path: KeyPath) -> list[KeyPath]:
        """Return the paths that were set at or below a path."""
        return [p for p in self.origins if p[: len(path)] == path]

    def _set(self, tree: dict[Any, Any], path: KeyPath, value: Any) -> None:
        head, rest = path[0], path[1:]
        if not rest:
            _merge(tree, {head: value})
            return
        inner = tree.get(head)
        if isinstance(inner, list):
            number = _item_number(inner, rest[0])
            if number is None:
                self.lines.append(f"{head}.{rest[0]}: no such item{_items_hint(inner, rest[0])}")
                return
            item = {rest[0]: inner[number]}
            self._set(item, rest, value)
            inner[number] = item[rest[0]]
            return
        if not isinstance(inner, dict):
            inner = tree[head] = {}
        self._set(inner, rest, value)

    def _remove(self, path: KeyPath, label: str) -> None:
        """Put a key of the schema back to its default; drop a free-form key."""
        parent: Any = self.tree
        default: Any = self._defaults
        for part in path[:-1]:
            parent = parent.get(part) if isinstance(parent, dict) else None
            default = default.get(part) if isinstance(default, dict) else None
        if not isinstance(parent, dict) or path[-1] not in parent:
            self.lines.append(f"{label}: no such key{_hint(self._schema, path)}")
        elif _schema.is_declared(self._schema, path) and isinstance(default, dict) and path[-1] in default:
            parent[path[-1]] = copy.deepcopy(default[path[-1]])
        else:
            del parent[path[-1]]
        for gone in self.below(path):
            del self.origins[gone]


def check(
    schema: type, line: CommandLine, *, find: Callable[[CommandLine], Path | None] | None = None
) -> Checked:
    """Put a config together.

    Args:
        schema: The dataclass to fill.
        line: The command line.
        find: Locates the config file; returns None when it cannot be read from here, and then its keys count
            as given.
    """
    draft = Draft(schema)
    partial = _lay_over(draft, line, find or find_file)
    tree = _resolve(draft, ignore_unknown=partial)
    builder = Builder(literal=draft.typed, partial=partial)
    config = builder.build(schema, tree)
    return Checked(config, _problems(schema, draft, builder))


def overlay(schema: type, tree: Mapping[str, Any], line: CommandLine) -> Merged:
    """Lay a config file and overrides over values that are there; the schema's own checks are left out.

    Args:
        schema: Tells names and types.
        tree: The values, which `~key` brings back; a `${` in texts has to be escaped.
        line: The command line.
    """
    draft = Draft(schema, tree)
    _lay_over(draft, line, find_file)
    resolved = _resolve(draft, ignore_unknown=False)
    builder = Builder(literal=draft.typed, partial=True)
    builder.build(schema, resolved)
    return Merged(resolved, draft.origins, _problems(schema, draft, builder))


def mismatches(schema: type, tree: Mapping[str, Any], content: Mapping[str, Any]) -> list[str]:
    """Tell what of some content has no place in a tree, or is of a wrong type (one line each)."""
    draft = Draft(schema, tree)
    draft.file(content, {}, name="")
    builder = Builder(literal=lambda _: True, partial=True)
    builder.build(schema, draft.tree)
    draft.origins.clear()
    return _problems(schema, draft, builder)


def _lay_over(draft: Draft, line: CommandLine, find: Callable[[CommandLine], Path | None]) -> bool:
    """Apply a command line; tell whether it has a file that cannot be read from here."""
    unread = False
    if line.config_path or line.config_name or line.config_dir:
        file = find(line)
        unread = file is None
        if file is not None:
            draft.file(*read_file(file), name=str(file))
    for override in line.overrides:
        draft.override(override)
    return unread


def _problems(schema: type, draft: Draft, builder: Builder) -> list[str]:
    described = [text for problem in builder.problems for text in _describe(schema, draft, problem)]
    return list(dict.fromkeys(draft.lines + described))


def _item_number(items: list[Any], key: str) -> int | None:
    """Return which item of a list a key means: its number, or what the item has under `name`."""
    if key.isdigit():
        return int(key) if int(key) < len(items) else None
    named = (i for i, item in enumerate(items) if isinstance(item, dict) and item.get("name") == key)
    return next(named, None)


def _items_hint(items: list[Any], key: str) -> str:
    names = [str(item["name"]) for item in items if isinstance(item, dict) and "name" in item]
    listed = f" It has: {', '.join(names)}." if names else ""
    return f" (a list of {len(items)}).{did_you_mean(key, names)}{listed}"


def _merge(into: dict[Any, Any], new: Mapping[Any, Any]) -> None:
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = copy.deepcopy(value)


def _leaves(content: Mapping[Any, Any], above: KeyPath = ()) -> Iterator[KeyPath]:
    for key, value in content.items():
        path = (*above, str(key))
        if isinstance(value, dict) and value:
            yield from _leaves(value, path)
        else:
            yield path


def _resolve(draft: Draft, *, ignore_unknown: bool) -> dict[Any, Any]:
    """Return the tree with its `${...}` replaced."""
    if not _has_interpolation(draft.tree):
        return draft.tree
    from omegaconf import OmegaConf

    config = OmegaConf.create(draft.tree, flags={"allow_objects": True})
    resolver = _Resolver(draft, ignore_unknown=ignore_unknown)
    resolved = resolver.resolve(draft.tree, config, ())
    assert isinstance(resolved, dict)
    return resolved


def _has_interpolation(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_has_interpolation, value.values()))
    if isinstance(value, list):
        return any(map(_has_interpolation, value))
    return isinstance(value, str) and "${" in value


@dataclasses.dataclass(frozen=True)
class _Resolver:
    draft: Draft
    ignore_unknown: bool

    def resolve(self, value: Any, node: Any, path: KeyPath) -> Any:
        """Replace interpolations in `value`; `node` is the same container in OmegaConf."""
        items = value.items() if isinstance(value, dict) else enumerate(value)
        resolved = {key: self._item(item, node, key, (*path, str(key))) for key, item in items}
        return resolved if isinstance(value, dict) else list(resolved.values())

    def _item(self, item: Any, node: Any, key: Any, path: KeyPath) -> Any:
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException

        if isinstance(item, (dict, list)):
            return self.resolve(item, node[key], path)
        if not (isinstance(item, str) and "${" in item):
            return item
        try:
            value = node[key]
            return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        except OmegaConfBaseException as error:
            if not self.ignore_unknown:
                place = _place(self.draft, path)
                reason = str(error).splitlines()[0]
                self.draft.lines.append(f"{place}: {reason} (write \\${{ for the characters themselves)")
            return UNKNOWN


def _place(draft: Draft, path: KeyPath) -> str:
    found = draft.origin(path)
    dotted = ".".join(path)
    if found is None:
        return dotted
    return found[1].label if found[0] == path else f"{found[1].label}: {dotted}"


def _describe(schema: type, draft: Draft, problem: Problem) -> list[str]:
    """Return the lines that tell people about a problem."""
    if problem.kind == "missing":
        dotted = ".".join(problem.path)
        about = f" ({problem.message})" if problem.message else ""
        return [f"{dotted}: missing, give ++{dotted}=...{about}"]
    if problem.kind == "unknown":
        paths = draft.below(problem.path) or [problem.path]
        return [f"{_place(draft, path)}: unknown key{_hint(schema, path)}" for path in paths]
    place = _place(draft, problem.path)
    # a schema's own checks usually name the key themselves
    names_itself = not place or problem.message.startswith(f"{place}.")
    return [problem.message if names_itself else f"{place}: {problem.message}"]


def _hint(schema: type, path: KeyPath) -> str:
    """Return the nearest key of the schema as a question."""
    dotted = ".".join(path)
    known = [".".join(p) for p in _schema.leaf_paths(schema)]
    same_name = [k for k in known if k.rpartition(".")[2] == path[-1]]
    if same_name:
        return f". Did you mean '{same_name[0]}'?"
    near = did_you_mean(dotted, known) or did_you_mean(dotted, {k.partition(".")[0] for k in known})
    return f".{near}" if near else ""


def compose(schema: type, args: Sequence[str]) -> Any:
    """Return an instance of `schema` from Hydra-style arguments; all problems are reported together."""
    checked = check(schema, _grammar.split(args))
    if checked.problems:
        raise UserError("\n".join(checked.problems))
    return checked.config
