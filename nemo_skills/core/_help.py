"""The listing of a main's arguments, and a config as YAML."""

import dataclasses
import enum
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from nemo_skills.core import _schema
from nemo_skills.core._grammar import encode
from nemo_skills.core._schema import Key, describe, is_schema, keys, members

_WIDEST_COLUMN = 40


class _Row(NamedTuple):
    key: str
    type_name: str
    default: str
    help_line: str


def listing(schema: type, *, program: str, about: str) -> str:
    """Return the typed list of a schema's keys, grouped by section."""
    rows = list(_rows(schema, _schema.default_tree(schema), ""))
    widths = [min(_WIDEST_COLUMN, max((len(row[i]) for row in rows), default=0)) for i in range(3)]
    lines = [f"Usage: {program} ++key=value ... [--config-path=FOLDER --config-name=FILE]", ""]
    if about.strip():
        lines += [about.strip().splitlines()[0], ""]
    section = ""
    for row in rows:
        if row.key.rpartition(".")[0] != section:
            section = row.key.rpartition(".")[0]
            lines += ["", f"{section}:"]
        cells = [cell.ljust(width) for cell, width in zip(row[:3], widths, strict=True)]
        lines.append(f"  {'  '.join(cells)}  {row.help_line}".rstrip())
    lines += [
        "",
        "A key is given as ++key=value; a YAML file with the same keys as --config-path and --config-name.",
    ]
    return "\n".join([*lines, "--print_config shows the values and stops; --help shows this list."])


def _rows(schema: type, defaults: dict[str, Any], above: str) -> Iterator[_Row]:
    """Yield a schema's own keys first, then those of its groups, so that sections stay together."""
    groups: list[tuple[Key, type]] = []
    for name, key in keys(schema).items():
        nested = [m for m in members(key.annotation) if is_schema(m)]
        if nested:
            groups.append((key, nested[0]))
            continue
        named = key.choices
        type_name = " | ".join(map(str, named)) if named else describe(key.annotation)
        yield _Row(f"{above}{name}", type_name, _default(defaults.get(name)), key.help_line)
    for key, nested_schema in groups:
        values = defaults.get(key.name)
        values = values if isinstance(values, dict) else _schema.default_tree(nested_schema)
        yield from _rows(nested_schema, values, f"{above}{key.name}.")


def _default(value: Any) -> str:
    if isinstance(value, str) and value == _schema.MISSING:
        return "required"
    return value.name if isinstance(value, enum.Enum) else encode(value)


def as_yaml(config: Any) -> str:
    """Return a config as YAML."""
    import yaml

    return yaml.safe_dump(_plain(dataclasses.asdict(config)), sort_keys=False, allow_unicode=True)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, enum.Enum):
        return value.name
    return str(value) if isinstance(value, Path) else value
