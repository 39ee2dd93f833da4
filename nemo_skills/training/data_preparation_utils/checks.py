"""Checks of what an answer says: arithmetic, code blocks."""

import ast
import re
import warnings
from dataclasses import dataclass

from nemo_skills.core.hydra import opt
from nemo_skills.training.data_preparation_utils.arithmetic import wrong_equations
from nemo_skills.training.data_preparation_utils.base import Row, RowFilter, key_text

_FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})[ \t]*([\w+-]*)[^\n]*$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Arithmetic(RowFilter):
    """Drops answers with a wrong calculation between plain numbers, such as 12 + 30 = 43.

    Rounded quotients are fine; calculations with letters, units or percent signs are not judged.
    """

    field: str = opt("generation", "the text")

    def reject(self, row: Row) -> str | None:
        """Reject the first wrong equation."""
        return "wrong arithmetic" if next(wrong_equations(key_text(row, self.field)), None) else None


@dataclass(frozen=True, kw_only=True)
class CodeBlocks(RowFilter):
    """Drops answers whose fenced code blocks are unclosed, missing, or no valid code."""

    field: str = opt("generation", "the text")
    languages: tuple[str, ...] = opt(
        ("python", "py", "python3"), "blocks so named must be Python that compiles"
    )
    required: bool = opt(False, "there must be at least one block in one of the languages")

    def reject(self, row: Row) -> str | None:
        """Reject by the blocks of the text."""
        text = key_text(row, self.field)
        blocks = code_blocks(text)
        if blocks is None:
            return "unclosed code block"
        own = [code for language, code in blocks if language.lower() in self.languages]
        if self.required and not own:
            return "no code block"
        return None if all(map(_compiles, own)) else "code does not compile"


def code_blocks(text: str) -> list[tuple[str, str]] | None:
    """Return language and text of every fenced block; None when the last one is not closed."""
    blocks: list[tuple[str, str]] = []
    opening: re.Match[str] | None = None
    for fence in _FENCE.finditer(text):
        if opening is None:
            opening = fence
        elif fence[1].startswith(opening[1]) and not fence[2]:
            blocks.append((opening[2], text[opening.end() + 1 : fence.start()]))
            opening = None
    return blocks if opening is None else None


def _compiles(code: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True
