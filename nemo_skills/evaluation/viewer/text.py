"""Markdown and LaTeX to HTML that needs no script: formulas become MathML, which browsers draw themselves.

Generations are untrusted: HTML in them is shown as text, and images are not loaded.
"""

import html
from collections.abc import Callable
from functools import cache
from typing import Any

_LONGEST_TEXT, _LONGEST_FORMULA = 100_000, 4_000


@cache
def _markdown() -> Any:
    from markdown_it import MarkdownIt
    from mdit_py_plugins.amsmath import amsmath_plugin
    from mdit_py_plugins.dollarmath import dollarmath_plugin
    from mdit_py_plugins.texmath import texmath_plugin

    markdown = MarkdownIt("commonmark", {"html": False, "breaks": True}).enable("table").disable("image")
    # a price such as $5 is no formula
    markdown.use(dollarmath_plugin, allow_space=False, allow_digits=False)
    markdown.use(texmath_plugin, delimiters="brackets")
    markdown.use(amsmath_plugin)
    renderer: Any = markdown.renderer
    for name in renderer.rules:
        if name.startswith(("math_", "amsmath")):
            markdown.add_render_rule(name, _rule(display=not name.endswith("inline")))
    return markdown


def render(text: str) -> str:
    """Return HTML of Markdown with LaTeX."""
    cut = text[:_LONGEST_TEXT]
    more = f"<p class=cut>({len(text) - len(cut)} more characters)</p>" if len(text) > len(cut) else ""
    return f"{_markdown().render(cut)}{more}"


def formula(latex: str, *, display: bool) -> str:
    """Return MathML of a formula; one that cannot be read is shown as it is."""
    from latex2mathml.converter import convert

    try:
        if len(latex) > _LONGEST_FORMULA:
            raise ValueError("too long")
        return str(convert(latex.strip(), display="block" if display else "inline"))
    except Exception:  # the library fails in many ways on what is no LaTeX
        return f"<code>{html.escape(latex)}</code>"


def _rule(*, display: bool) -> Callable[..., str]:
    def rule(_self: Any, tokens: Any, index: int, _options: Any, _env: Any) -> str:
        return formula(tokens[index].content, display=display)

    return rule
