"""Sets, tuples and intervals of plain numbers, which need no algebra to be compared."""

import re
from dataclasses import dataclass

from nemo_skills.evaluation.graders.mathematics.numbers import Number, parse_number, same_number

_SET = re.compile(r"\\\{(?P<inside>[^{}\[\]()]*)\\\}")
_BRACKETS = re.compile(r"(?P<open>[(\[])(?P<inside>[^()\[\]]*)(?P<close>[)\]])")
_MEMBER = re.compile(r"[a-zA-Z]\s*\\in(?![a-z])\s*(?=[(\[])")
_AND = re.compile(r"\s*(?:,\s*(?:and|or)\b|,|\band\b|\bor\b|\\text\{\s*,?\s*(?:and|or)\s*\})\s*")
_LESS = r"(?:<|\\leq?(?![a-z]))"
_MORE = r"(?:>|\\geq?(?![a-z]))"
_BETWEEN = re.compile(
    rf"(?P<left>[^<>\\]+?)\s*(?P<one>{_LESS})\s*[a-zA-Z]\s*(?P<two>{_LESS})\s*(?P<right>[^<>\\]+)"
)
_ONE_SIDED = re.compile(rf"(?P<var>[a-zA-Z])\s*(?P<sign>{_LESS}|{_MORE})\s*(?P<end>[^<>a-zA-Z\\]+)")
_INFINITY = re.compile(r"(?P<sign>[+-]?)\s*\\infty")
_LONGEST = 400


@dataclass(frozen=True, slots=True)
class Several:
    """Some numbers; None stands for an infinite end of an interval."""

    numbers: tuple[Number | None, ...]
    brackets: str | None = None
    """How a tuple or interval is enclosed; None for sets and lists, whose order does not matter."""


def parse_several(text: str) -> Several | None:
    """Return the numbers that a normalised answer lists; None if it is anything else."""
    if len(text) > _LONGEST:
        return None
    if interval := _inequality(text):
        return interval
    text = _MEMBER.sub("", text, count=1) if _MEMBER.match(text) else text
    if match := _BRACKETS.fullmatch(text):
        numbers = _numbers(match["inside"].split(","), infinite=True)
        return Several(numbers, match["open"] + match["close"]) if numbers and len(numbers) > 1 else None
    match = _SET.fullmatch(text)
    numbers = _numbers(_AND.split(match["inside"] if match else text), infinite=False)
    return Several(numbers) if numbers and (match or len(numbers) > 1) else None


def same_several(left: Several, right: Several, tolerance: float) -> bool | None:
    """Whether two are equal; None for a list against a tuple, of which somebody else must make sense."""
    if (left.brackets is None) != (right.brackets is None):
        return None
    if left.brackets is not None:
        if left.brackets != right.brackets or len(left.numbers) != len(right.numbers):
            return False
        return all(_same(a, b, tolerance) for a, b in zip(left.numbers, right.numbers, strict=True))
    return _covers(left, right, tolerance) and _covers(right, left, tolerance)


def _covers(left: Several, right: Several, tolerance: float) -> bool:
    return all(any(_same(a, b, tolerance) for b in right.numbers) for a in left.numbers)


def _same(left: Number | None, right: Number | None, tolerance: float) -> bool:
    if left is None or right is None:
        return left is right
    return same_number(left, right, tolerance)


def _numbers(parts: list[str], *, infinite: bool) -> tuple[Number | None, ...] | None:
    found: list[Number | None] = []
    for index, part in enumerate(parts):
        match = _INFINITY.fullmatch(part.strip()) if infinite and len(parts) == 2 else None
        # infinity on the wrong side is nobody's interval
        if match and (match["sign"] == "-") == (index == 0):
            found.append(None)
            continue
        number = parse_number(part.strip())
        if number is None:
            return None
        found.append(number)
    return tuple(found)


def _inequality(text: str) -> Several | None:
    if match := _BETWEEN.fullmatch(text):
        low, high = parse_number(match["left"]), parse_number(match["right"].strip())
        brackets = ("(" if match["one"] == "<" else "[") + (")" if match["two"] == "<" else "]")
        return Several((low, high), brackets) if low and high else None
    match = _ONE_SIDED.fullmatch(text)
    end = parse_number(match["end"].strip()) if match else None
    if match is None or end is None:
        return None
    sign = match["sign"]
    if sign in ("<", ">"):
        return Several((None, end) if sign == "<" else (end, None), "()")
    return Several((None, end), "(]") if sign.startswith("\\l") else Several((end, None), "[)")
