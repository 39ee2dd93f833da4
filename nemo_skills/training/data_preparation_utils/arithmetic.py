"""Finding calculations between plain numbers in a text, and doing them again."""

import re
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import NamedTuple

_CHARACTER = r"[\d$()+\-*/×÷−–x^ ]"
# a point or comma belongs to a number only in front of a digit; possessive, and never begun in the middle:
# time grows with the length of the text only
_PART = rf"(?:{_CHARACTER}|[.,](?=\d))*+"
_RUN = re.compile(rf"(?<!{_CHARACTER})(?<![.,](?=\d)){_PART}(?:={_PART})++")
_TOKEN = re.compile(r"\s*(?:(\d[\d,]*(?:\.\d+)?|\.\d+)|([+\-*/()^]))")
_THOUSANDS = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+")
_OPERATOR = re.compile(r"[+*/)^×÷−–x-]")
_SAME = str.maketrans({"×": "*", "÷": "/", "−": "-", "–": "-", "$": " "})
_TIMES = re.compile(r"(?<=[\d)])\s*x\s*(?=[\d(.])")
_OF = re.compile(r"\b(?:of|off|root)\s*\Z", re.IGNORECASE)
_JOINING = ":})]%_\\'\"|√"
_LARGEST_POWER = 64
_MOST_DIGITS = 30


class _Side(NamedTuple):
    value: Fraction
    decimals: int
    """Digits behind the point, where it is a single number."""
    single: bool
    divides: bool


class _UnreadableError(Exception):
    pass


def wrong_equations(text: str) -> Iterator[str]:
    """Yield every `a = b` between plain numbers that is not true."""
    for run in _RUN.finditer(text):
        sides = run.group().split("=")
        values = [_side(side) for side in sides]
        before = text[run.start() - 1] if run.start() else "\n"
        # `5 apples + 3 = 8`, `n2 + 3 = 8`, `half of 10 + 2 = 7`: the calculation begins before
        joined = not sides[0][:1].isspace() and (before.isalnum() or before in _JOINING)
        if joined or _OPERATOR.match(sides[0].lstrip()) or _OF.search(text, 0, run.start() + 1):
            values[0] = None
        after = text[run.end()] if run.end() < len(text) else "\n"
        if after in "%{\\_!|°" or (after.isalpha() and not sides[-1][-1:].isspace()):
            values[-1] = None
        for index in range(len(sides) - 1):
            left, right = values[index], values[index + 1]
            if left and right and not (left.single and right.single) and not _agree(left, right):
                yield f"{sides[index].strip()} = {sides[index + 1].strip()}"


def _agree(left: _Side, right: _Side) -> bool:
    difference = abs(left.value - right.value)
    if not difference:
        return True
    if not (left.divides or right.divides or left.decimals or right.decimals):
        return False
    shown = [side.decimals for side in (left, right) if side.single]
    if not shown:
        return difference <= Fraction(1, 100) * max(Fraction(1), abs(left.value))
    # half a unit of the last digit, a whole one where digits may have been cut off
    unit = Fraction(1, 10 ** shown[0])
    return difference < unit if shown[0] else difference <= unit / 2


def _side(text: str) -> _Side | None:
    text = _TIMES.sub("*", text.translate(_SAME)).strip().rstrip(".,").strip()
    try:
        tokens = _tokens(text)
        parser = _Parser(tokens)
        value = parser.sum()
        if parser.rest:
            return None
    except (_UnreadableError, ZeroDivisionError, InvalidOperation, RecursionError):
        return None
    single = len(tokens) == 1
    return _Side(value, len(tokens[0].partition(".")[2]) if single else 0, single, "/" in tokens)


def _tokens(text: str) -> list[str]:
    tokens, at = list[str](), 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None or len(match.group()) > _MOST_DIGITS:
            raise _UnreadableError
        if match[1] and not _THOUSANDS.fullmatch(match[1]):
            raise _UnreadableError
        tokens.append(match[1] or match[2])
        at = match.end()
    return tokens


class _Parser:
    """Sums of products of powers, in the usual order."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens = tokens
        self._at = 0

    @property
    def rest(self) -> bool:
        return self._at < len(self._tokens)

    def sum(self) -> Fraction:
        value = self._product()
        while (sign := self._peek()) in ("+", "-"):
            self._at += 1
            value = value + self._product() if sign == "+" else value - self._product()
        return value

    def _product(self) -> Fraction:
        value = self._power()
        while (sign := self._peek()) in ("*", "/", "("):
            self._at += sign != "("
            value = value / self._power() if sign == "/" else value * self._power()
        return value

    def _power(self) -> Fraction:
        base = self._atom()
        doubled = self._tokens[self._at : self._at + 2] == ["*", "*"]
        if self._peek() != "^" and not doubled:
            return base
        self._at += 2 if doubled else 1
        exponent = self._power()
        if exponent.denominator != 1 or not 0 <= exponent <= _LARGEST_POWER:
            raise _UnreadableError
        return Fraction(base ** int(exponent))

    def _atom(self) -> Fraction:
        found = self._peek()
        if found is None:
            raise _UnreadableError
        self._at += 1
        if found == "(":
            value = self.sum()
            if self._peek() != ")":
                raise _UnreadableError
            self._at += 1
            return value
        if found == "-":
            return -self._power()
        if not found[-1].isdigit():
            raise _UnreadableError
        return Fraction(Decimal(found.replace(",", "")))

    def _peek(self) -> str | None:
        return self._tokens[self._at] if self._at < len(self._tokens) else None
