"""Markdown and LaTeX to HTML that needs no script: formulas become MathML, which browsers draw themselves.

Generations are untrusted: HTML in them is shown as text, and images are not loaded.
"""

import html
import re
from functools import cache
from typing import Any
from xml.etree import ElementTree

_LONGEST_TEXT = 100_000
# Code is found so that formulas are not looked for in it; a price such as $5 is no formula. Bounds
# keep the time short for any text.
_PARTS = re.compile(
    r"(?P<code>^(?P<fence>```++|~~~++).*?^(?P=fence)|(?<!`)(?P<tick>`++).{1,4000}?(?<!`)(?P=tick)(?!`))"
    r"|\$\$(?P<dollars>.{1,4000}?)\$\$"
    r"|\\\[(?P<bracket>.{1,4000}?)\\\]"
    r"|\\\((?P<paren>.{1,4000}?)\\\)"
    r"|(?P<environment>\\begin\{(?P<name>align|aligned|equation|gather|alignat|multline|cases)\*?\}.{1,4000}?"
    r"\\end\{(?P=name)\*?\})"
    r"|(?<![\\$\w])\$(?P<dollar>(?![\s$])[^$\n]{0,4000}?(?<![\s\\]))\$(?![\d$])",
    re.DOTALL | re.MULTILINE,
)
_DISPLAYED = ("dollars", "bracket", "environment")
# stand for formulas while Markdown is read, which would take their signs for its own
_BEGIN, _END = "\ue000", "\ue001"
_MATHML = "{http://www.w3.org/1998/Math/MathML}"
_ELEMENTS = frozenset(
    "math mrow mi mn mo mtext mspace mfrac msqrt mroot mstyle merror mpadded mphantom mfenced menclose msub"
    " msup msubsup munder mover munderover mmultiscripts mprescripts none mtable mtr mtd semantics ms".split()
)
_ATTRIBUTES = frozenset(
    "display displaystyle mathvariant mathcolor mathbackground mathsize stretchy fence form separator lspace"
    " rspace minsize maxsize accent accentunder linethickness notation width height depth voffset scriptlevel"
    " columnalign rowalign columnspacing rowspacing columnlines rowlines frame movablelimits symmetric"
    " largeop open close separators bevelled numalign denomalign align linebreak".split()
)
_HELD = re.compile(f"{_BEGIN}(\\d+){_END}")


@cache
def _markdown() -> Any:
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark", {"html": False, "breaks": True}).enable("table").disable("image")


def render(text: str) -> str:
    """Return HTML of Markdown with LaTeX."""
    cut = text[:_LONGEST_TEXT].replace(_BEGIN, "\ufffd").replace(_END, "\ufffd")
    formulas: list[str] = []

    def hold(match: re.Match[str]) -> str:
        if match["code"] is not None:
            return match[0]
        kind = next(name for name in (*_DISPLAYED, "paren", "dollar") if match[name] is not None)
        formulas.append(formula(match[kind], display=kind in _DISPLAYED))
        return f"{_BEGIN}{len(formulas) - 1}{_END}"

    shown = _markdown().render(_PARTS.sub(hold, cut))
    shown = _HELD.sub(lambda match: formulas[int(match[1])], shown)
    more = f"<p class=cut>({len(text) - len(cut)} more characters)</p>" if len(text) > len(cut) else ""
    return f"{shown}{more}"


def formula(latex: str, *, display: bool) -> str:
    """Return MathML of a formula; one that cannot be read is shown as it is."""
    from latex2mathml.converter import convert

    try:
        mathml = str(convert(latex.strip(), display="block" if display else "inline"))
        _check(mathml)
        return mathml
    except Exception:  # the library fails in many ways on what is no LaTeX
        return f"<code>{html.escape(latex)}</code>"


def _check(mathml: str) -> None:
    """Raise when there is more in it than MathML: the library passes on text as it is, tags and all."""
    for element in ElementTree.fromstring(mathml).iter():  # noqa: S314 (no entities without a document type)
        known = element.tag.removeprefix(_MATHML) in _ELEMENTS and element.tag.startswith(_MATHML)
        if not known or not element.attrib.keys() <= _ATTRIBUTES:
            raise ValueError(f"{element.tag} is no part of a formula")
