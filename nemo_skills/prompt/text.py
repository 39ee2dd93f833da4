"""Texts with `{key}` placeholders: parsed once, filled many times."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from nemo_skills.core.errors import UserError

_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}\n]+)\}|[{}]")


@dataclass(frozen=True, kw_only=True)
class TextTemplate:
    """A parsed text; `literals` has one entry more than `keys`, and they alternate.

    Not `str.format`: that would also follow attributes and indexes of the values.
    """

    literals: tuple[str, ...]
    keys: tuple[str, ...]

    @classmethod
    def parse(cls, text: str, where: str) -> Self:
        """Split `text` at its placeholders; `{{` and `}}` stand for literal braces."""
        literals, keys, start = [""], list[str](), 0
        for token in _TOKEN.finditer(text):
            literals[-1] += text[start : token.start()]
            start = token.end()
            if token.group(1) is not None:
                keys.append(token.group(1))
                literals.append("")
            elif len(token.group()) == 2:
                literals[-1] += token.group()[0]
            else:
                line = text.count("\n", 0, token.start()) + 1
                raise UserError(
                    f"{where}: a lone '{token.group()}' in line {line} of the text; "
                    "write {{ or }} for a literal brace, {key} for a value of the row"
                )
        literals[-1] += text[start:]
        return cls(literals=tuple(literals), keys=tuple(keys))

    def fill(self, values: Mapping[str, str]) -> str:
        """Put `values` in; they arrive as they are, braces included."""
        parts = [self.literals[0]]
        for key, literal in zip(self.keys, self.literals[1:], strict=True):
            parts += (values[key], literal)
        return "".join(parts)

    def bind(self, key: str, text: str) -> Self:
        """Return the template with `key` replaced by a fixed text."""
        literals, keys = [self.literals[0]], list[str]()
        for own, literal in zip(self.keys, self.literals[1:], strict=True):
            if own == key:
                literals[-1] += text + literal
            else:
                keys.append(own)
                literals.append(literal)
        return type(self)(literals=tuple(literals), keys=tuple(keys))


def as_text(value: Any) -> str:
    """Return a value of a row as it stands in a prompt: text as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
