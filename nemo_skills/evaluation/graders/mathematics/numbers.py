"""Numbers as people and models write them, exactly."""

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

_LONGEST = 400
_LARGEST_EXPONENT = 400
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
_DECIMAL = rf"(?:{_DIGITS}(?:\.\d*)?|\.\d+)"
_PLAIN = re.compile(
    rf"(?P<mantissa>{_DECIMAL})(?:[eE](?P<e>[+-]?\d+)|(?:\\times|\\cdot|\*|x)10\^(?:\{{(?P<p>[+-]?\d+)\}}|(?P<q>\d+)))?"
)
_FRACTION = re.compile(rf"(?P<top>-?{_DECIMAL})/(?P<bottom>-?{_DECIMAL})")
_LATEX_FRACTION = re.compile(
    rf"(?P<whole>\d+)?\\frac(?:\{{(?P<top>-?{_DECIMAL})\}}|(?P<t>\d))(?:\{{(?P<bottom>-?{_DECIMAL})\}}|(?P<b>\d))"
)
_MIXED = re.compile(r"(?P<whole>\d+)(?: |\+|-)(?P<top>\d+)/(?P<bottom>\d+)")
_CURRENCY = re.compile(r"\s*(?:\\?[$€£¥₹]|USD|Rs\.?(?=[\s\d]))?\s*")
_PERCENT = re.compile(r"\s*(?:\\?%|\\text\{\s*(?:percent|per cent|\\?%)\s*\}|per ?cent(?![a-z]))")
_DEGREE_OR_CURRENCY = re.compile(r"\s*(?:\^\{?\\circ\}?|\\degree|\\?[$€£¥]|USD(?![A-Za-z]))")
_UNIT_IN_TEXT = re.compile(r"\s*\\text\{\s*(?P<unit>[^{}]*?)\s*\}(?:\^\{?\d\}?)?")
_UNIT = re.compile(r"(?P<blank>\s*)(?P<unit>[A-Za-z][A-Za-z.'/-]*)(?:\^\{?\d\}?)?")
_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SHORT_UNITS = frozenset(
    "mm cm dm km in ft yd mi kg mg lb lbs oz ml mL dl hr hrs hp mph kph sq cu pm am PM AM Hz Pa".split()
)
_LETTER_UNITS = frozenset("mgshLlNJWVAK")
_SPELLED_UNITS = {
    "millimeter": "mm", "centimeter": "cm", "meter": "m", "kilometer": "km",
    "millimetre": "mm", "centimetre": "cm", "metre": "m", "kilometre": "km",
    "inch": "in", "foot": "ft", "feet": "ft", "yard": "yd", "mile": "mi",
    "milligram": "mg", "gram": "g", "kilogram": "kg", "pound": "lb", "ounce": "oz",
    "second": "s", "sec": "s", "minute": "min", "hour": "h", "hr": "h",
    "day": "day", "week": "week", "month": "month", "year": "year",
    "milliliter": "mL", "ml": "mL", "liter": "L", "litre": "L", "gallon": "gallon",
    "dollar": "dollar", "cent": "cent", "euro": "euro", "degree": "degree", "radian": "radian",
}  # fmt: skip
# words that make a number something else than a number with a unit
_NO_UNITS = frozenset(
    "plus minus times over and or to through divided dozen half halves quarter third thirds point mod".split()
)


@dataclass(frozen=True, slots=True)
class Number:
    """A number, and how it was written."""

    value: Fraction
    exact: bool
    """False for decimal fractions, which may have been rounded."""
    percent: bool = False
    unit: str | None = None
    """A physical unit; other words behind a number do not matter."""


def parse_number(text: str) -> Number | None:
    """Return the number that `text` is, without its unit; None if it is anything else than one number.

    Args:
        text: normalised by `latex.normalise`.
    """
    if len(text) > _LONGEST:
        return None
    at, sign = 0, 1
    while text[at : at + 1] in ("-", "+", " ") and at < len(text):
        sign = -sign if text[at] == "-" else sign
        at += 1
    at = _end(_CURRENCY, text, at)
    if text[at : at + 1] == "-":
        at, sign = at + 1, -sign
    found = _mixed(text, at) or _fraction(text, at) or _plain(text, at)
    if found is None:
        return None
    scale, at = _scale(text, found.end)
    percent = _PERCENT.match(text, at)
    unit, at = _unit(text, percent.end() if percent else at)
    if text[at:].strip(" ."):
        return None
    return Number(sign * found.value * scale, found.exact, percent is not None, unit)


def same_number(left: Number, right: Number, tolerance: float) -> bool:
    """Whether two numbers are equal; decimal fractions need only be within a relative `tolerance`.

    A percentage equals both its number and its hundredth, unless both are percentages.
    """
    if left.unit and right.unit and left.unit != right.unit:
        return False
    if left.percent == right.percent:
        return _close(left, right, Fraction(1), tolerance)
    factor = Fraction(1, 100) if left.percent else Fraction(100)
    return _close(left, right, Fraction(1), tolerance) or _close(left, right, factor, tolerance)


def _close(left: Number, right: Number, factor: Fraction, tolerance: float) -> bool:
    difference = abs(left.value * factor - right.value)
    if left.exact and right.exact:
        return difference == 0
    return difference <= Fraction(tolerance) * max(abs(left.value * factor), abs(right.value))


class _Found(NamedTuple):
    value: Fraction
    exact: bool
    end: int


def _mixed(text: str, at: int) -> _Found | None:
    match = _MIXED.match(text, at)
    if match is None or not int(match["bottom"]):
        return None
    return _Found(int(match["whole"]) + Fraction(int(match["top"]), int(match["bottom"])), True, match.end())


def _fraction(text: str, at: int) -> _Found | None:
    if match := _LATEX_FRACTION.match(text, at):
        top, bottom = match["top"] or match["t"], match["bottom"] or match["b"]
        whole = int(match["whole"] or 0)
    elif match := _FRACTION.match(text, at):
        top, bottom, whole = match["top"], match["bottom"], 0
    else:
        return None
    above, below = _decimal(top), _decimal(bottom)
    if not below or (whole and above < 0):
        return None
    return _Found(whole + above / below, "." not in top + bottom, match.end())


def _plain(text: str, at: int) -> _Found | None:
    match = _PLAIN.match(text, at)
    if match is None:
        return None
    exponent = int(match["e"] or match["p"] or match["q"] or 0)
    if abs(exponent) > _LARGEST_EXPONENT:
        return None
    value = _decimal(match["mantissa"]) * Fraction(10) ** exponent
    return _Found(value, value.denominator == 1, match.end())


def _scale(text: str, at: int) -> tuple[int, int]:
    match = _UNIT.match(text, at) or _UNIT_IN_TEXT.match(text, at)
    scale = _SCALES.get(match["unit"].lower()) if match else None
    return (scale, match.end()) if match and scale else (1, at)


def _unit(text: str, at: int) -> tuple[str | None, int]:
    """Return the unit at a place, if it is a physical one, and where units end."""
    first: str | None = None
    while at < len(text):
        if match := _DEGREE_OR_CURRENCY.match(text, at):
            at = match.end()
            continue
        match = _UNIT_IN_TEXT.match(text, at)
        if match is None:
            match = _UNIT.match(text, at)
            if match is None or not _is_unit(match["unit"].rstrip("."), bool(match["blank"])):
                break
        name = match["unit"].rstrip(".")
        first = first or _physical(name)
        at = match.end()
    return first, at


def _physical(name: str) -> str | None:
    """Return the usual sign of a physical unit; None for any other word."""
    word = name.lower()
    singular = word.removesuffix("es") if word == "inches" else word.removesuffix("s")
    known = _SPELLED_UNITS.get(word) or _SPELLED_UNITS.get(singular)
    return known or (name if name in _SHORT_UNITS | _LETTER_UNITS else None)


def _is_unit(word: str, after_blank: bool) -> bool:
    if word in _SHORT_UNITS:
        return True
    long_enough = len(word) > 2 or word in _LETTER_UNITS or word in ("a", "of", "in", "at", "on", "an", "is")
    return after_blank and long_enough and word.lower() not in _NO_UNITS


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    match = pattern.match(text, at)
    return match.end() if match else at


def _decimal(text: str) -> Fraction:
    text = text.replace(",", "").rstrip(".")
    return Fraction(text if not text.startswith(("-.", ".")) else text.replace(".", "0.", 1))
