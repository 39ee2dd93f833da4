"""Brings LaTeX and plain notation into one form, as far as that needs no understanding."""

import re

_SYMBOLS = {
    "−": "-", "–": "-", "—": "-", "×": r"\times ", "·": r"\cdot ", "÷": "/", "≤": r"\leq ", "≥": r"\geq ",
    "≠": r"\neq ", "∞": r"\infty ", "π": r"\pi ", "√": r"\sqrt", "°": r"^\circ", "∪": r"\cup ", "∩": r"\cap ",
    "∈": r"\in ", "±": r"\pm ", "∅": r"\emptyset ", "θ": r"\theta ", "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}",
    "¾": r"\frac{3}{4}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "²": "^2", "³": "^3", "％": "%", "，": ",",
    "\u00a0": " ", "\u202f": " ", "\u2009": " ",
}  # fmt: skip
_TRANSLATION = str.maketrans(_SYMBOLS)
_SPACES = re.compile(
    r"\\[,;:! ]|\\(?:quad|qquad|enspace|thinspace|displaystyle|textstyle|limits)(?![a-zA-Z])|~"
)
_SIZES = re.compile(r"\\(?:left|right|[bB]igg?[lrm]?)(?![a-zA-Z])\.?")
_FRACTIONS = re.compile(r"\\[dtc]frac(?![a-zA-Z])")
_FONTS = re.compile(
    r"\\(?:mathrm|mathbf|mathit|mathbb|mathcal|mathsf|operatorname|boldsymbol|bm|rm|bf)\*?\s*\{(\w)\}"
)
_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mbox|mathrm|mathbf|hbox)\s*\{")
_SHORT_FRACTION = re.compile(r"\\frac\s*(\d)\s*(\d)(?!\d)")
_THOUSANDS = re.compile(r"(?<=\d)(?:\{,\}|\\,|\\!|(?<=\d),\\!|,\\;)(?=\d{3}(?!\d))")
_SPACED_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?: \d{3})+(?![\d,])")
_POWER = re.compile(r"\^\s*(-?\d{2,}|-\d)(?![\d}])")
_POWER_IN_PARENTHESES = re.compile(r"\^\s*\(([^()]*)\)")
_ROOT = re.compile(r"(?<![\\a-zA-Z])sqrt\s*\(([^()]*)\)|\\sqrt\s*\(([^()]*)\)")
_ROOT_OF_ONE = re.compile(r"\\sqrt\s*(\d+|[a-z])(?![a-z{\d])")
_NAMES = re.compile(r"(?<![\\a-zA-Z])(pi|infty|infinity|theta|sin|cos|tan|log|ln)(?![a-zA-Z])")
_BLANKS = re.compile(r"\s+")
_REDUNDANT = re.compile(r"^\{([^{}]*)\}$")
# {x | x > 2} is what its condition says
_SET_BUILDER = re.compile(
    r"\\\{\s*[a-zA-Z](?:\s*\\in\s*(?:\\R|R))?\s*(?:\\mid(?![a-z])|\||:)"
    r"\s*(?P<condition>[^{}]*(?:[<>]|\\[lg]eq?(?![a-z]))[^{}]*)\\\}"
)
_EMPTY = re.compile(
    r"(?:there (?:are|is) )?no (?:real |integer |such )?(?:solutions?|numbers?|values?)|(?:the )?empty set"
    r"|\\(?:emptyset|varnothing)|\\\{\s*\\\}|\{\s*\}",
    re.IGNORECASE,
)
EMPTY = r"\emptyset"


def normalise(text: str) -> str:
    """Return an answer in one of the forms that mean the same."""
    text = text.translate(_TRANSLATION)
    text = _THOUSANDS.sub("", text)
    text = _SPACES.sub(" ", _SIZES.sub("", text))
    text = _FRACTIONS.sub(r"\\frac", text)
    text = _FONTS.sub(r"\1", text).replace("**", "^")
    text = _SHORT_FRACTION.sub(r"\\frac{\1}{\2}", text)
    text = _ROOT_OF_ONE.sub(r"\\sqrt{\1}", _ROOT.sub(_braced_root, text))
    text = _POWER.sub(r"^{\1}", _POWER_IN_PARENTHESES.sub(r"^{\1}", text))
    text = _NAMES.sub(lambda m: "\\" + m[1].replace("infinity", "infty"), text)
    text = _SPACED_THOUSANDS.sub(lambda m: m[0].replace(" ", ""), text)
    text = _BLANKS.sub(" ", text).strip().strip("$").strip()
    text = text.rstrip(".,;:") if not text.endswith("\\,") else text
    text = _REDUNDANT.sub(r"\1", text)
    builder = _SET_BUILDER.fullmatch(text)
    text = builder["condition"].strip() if builder else text
    return EMPTY if _EMPTY.fullmatch(without_text(text)[0].strip()) else text


def words(text: str) -> str | None:
    r"""Return the words that an answer consists of, in small letters; None if it is mathematics.

    What stands in `\text{}` is words, and so is a sequence of words with four or more letters each or a few
    short ones: `xy` could be a product.
    """
    bare, in_text = without_text(text)
    bare = bare.strip().strip("().,:;\"'`“”").strip()
    if not bare or not _WORDS.fullmatch(bare):
        return None
    if in_text or bare.casefold() in _SHORT_WORDS or any(len(word) > 3 for word in _WORD.findall(bare)):
        return " ".join(bare.casefold().split())
    return None


_WORDS = re.compile(r"[^\W\d_]+(?:[\s,'’&/-]+[^\W\d_]+)*")
_WORD = re.compile(r"[^\W\d_]+")
_SHORT_WORDS = frozenset("yes no odd even true none both east west mon tue wed thu fri sat sun".split())


def without_text(text: str) -> tuple[str, bool]:
    r"""Replace `\text{…}` by what is in it; also tell whether nothing but blanks stood outside."""
    parts: list[str] = []
    outside = False
    at = 0
    for match in _TEXT.finditer(text):
        end = text.find("}", match.end())
        if end < 0 or match.start() < at:
            continue
        outside = outside or bool(text[at : match.start()].strip(" (){}.$"))
        parts += [text[at : match.start()], text[match.end() : end]]
        at = end + 1
    outside = outside or bool(text[at:].strip(" (){}.$"))
    return "".join([*parts, text[at:]]), bool(parts) and not outside


def _braced_root(match: re.Match[str]) -> str:
    inside = match[1] if match[1] is not None else match[2]
    return rf"\sqrt{{{inside}}}"
