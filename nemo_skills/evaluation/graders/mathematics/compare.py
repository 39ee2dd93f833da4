"""Whether two answers are the same, by the cheapest means that can tell."""

import re
from enum import Enum

from nemo_skills.evaluation.graders.mathematics import symbolic
from nemo_skills.evaluation.graders.mathematics.latex import EMPTY, normalise, words
from nemo_skills.evaluation.graders.mathematics.numbers import parse_number, same_number
from nemo_skills.evaluation.graders.mathematics.several import parse_several, same_several

_ASSIGNMENT = re.compile(
    r"^(?:\\?[a-zA-Z]+(?:_\{?\w+\}?)?(?:\(\s*\\?\w+\s*\))?)\s*(?:=|\\in(?![a-z]))\s*(?P<value>[^=]+)$"
)
_LAST_OF_EQUATION = re.compile(r"^[^=<>]*=\s*(?P<value>[^=<>]+)$")
# blanks between digits or letters mean something: `1 2` is not `12`
_BLANK = re.compile(r"(?<!\w)\s+|\s+(?!\w)")


class Sameness(Enum):
    """How two answers compare."""

    same = "same"
    different = "different"
    unknown = "unknown"
    """Finding out could take for ever."""


def compare(expected: str, given: str, tolerance: float) -> Sameness:
    """Compare an answer with the expected one."""
    left, right = normalise(expected), normalise(given)
    if _squeeze(left) == _squeeze(right):
        return Sameness.same
    decided = _cheaply(left, right, tolerance)
    if decided is None:
        left, right = _values(left, right)
        decided = _cheaply(left, right, tolerance)
    if decided is not None:
        return Sameness.same if decided else Sameness.different
    if not right or symbolic.too_much(left) or symbolic.too_much(right):
        return Sameness.unknown if right else Sameness.different
    try:
        return Sameness.same if symbolic.equivalent(left, right) else Sameness.different
    except RecursionError:
        return Sameness.unknown


def is_number(text: str) -> bool:
    """Whether an answer is one number, with a unit perhaps."""
    return parse_number(normalise(text)) is not None


def _cheaply(left: str, right: str, tolerance: float) -> bool | None:
    """Compare texts, numbers and words; None when that does not decide."""
    if _squeeze(left) == _squeeze(right):
        return True
    expected, given = parse_number(left), parse_number(right)
    if expected is not None and given is not None:
        return same_number(expected, given, tolerance)
    if EMPTY in (left, right):
        return False
    some, others = parse_several(left), parse_several(right)
    if some is not None and others is not None:
        return same_several(some, others, tolerance)
    left_words, right_words = words(left), words(right)
    if left_words is None:
        return None
    # words against mathematics: a name may be an identifier in one of them
    return left_words == (right_words or _squeeze(right).strip("().").casefold())


def _values(left: str, right: str) -> tuple[str, str]:
    """Drop `x =` in front of one answer when the other has no such thing."""
    if "=" not in left and "\\in" not in left:
        match = _ASSIGNMENT.match(right) or (_LAST_OF_EQUATION.match(right) if parse_number(left) else None)
        return left, match["value"].strip() if match else right
    if "=" not in right and "\\in" not in right:
        match = _ASSIGNMENT.match(left)
        return match["value"].strip() if match else left, right
    return left, right


def _squeeze(text: str) -> str:
    return _BLANK.sub("", text)
