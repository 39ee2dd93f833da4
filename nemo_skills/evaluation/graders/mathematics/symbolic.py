"""Comparison by the math-verify library, and what it must not be given."""

import functools
import logging
import math
import re
from typing import Any

from nemo_skills.core.errors import UserError

_LONGEST = 2000
_DEEPEST = 40
_LARGEST_POWER = 20_000.0
_TOLERANCE = 1e-5
_POWER = re.compile(
    r"(?P<base>\d+(?:\.\d+)?|\)|\}|!|[a-zA-Z])?\s*\^\s*(?:\{(?P<long>[^{}]*)\}|(?P<short>\d+|\\?\w+))"
)
_NESTED_POWER = re.compile(r"\^\s*\{?[^{}^]*\d[^{}^]*\}?\s*\^|\^\s*\{[^}]*\^")
_FACTORIAL = re.compile(r"(\d+|\)|\}|!)\s*!")
_LONG_DIGITS = re.compile(r"\d{400,}")


@functools.cache
def load() -> None:
    """Import the library.

    Raises:
        UserError: it is not installed.
    """
    try:
        import math_verify
    except ImportError as error:
        raise UserError(
            f"The math grader needs the library math-verify ({error}): pip install 'nemo-skills[eval]'."
        ) from None
    for name in (math_verify.__name__, "latex2sympy2_extended"):
        # it tells of each answer that it cannot parse, and that we do without its clock
        logging.getLogger(name).setLevel(logging.CRITICAL)


def too_much(text: str) -> str | None:
    """Say why evaluating an answer could take for ever; None when nothing shows.

    What gets through and hangs all the same is ended by the pool; this only saves the time until then.
    """
    if len(text) > _LONGEST:
        return f"longer than {_LONGEST} characters"
    if _depth(text) > _DEEPEST:
        return f"nested more than {_DEEPEST} deep"
    if _LONG_DIGITS.search(text):
        return "a number of more than 400 digits"
    if _NESTED_POWER.search(text) and _tower_is_high(text):
        return "a power of a power"
    for match in _POWER.finditer(text):
        exponent = (match["long"] or match["short"] or "").strip("-+ ")
        base = match["base"] or ""
        if exponent.isdigit() and _power_size(base, exponent) > _LARGEST_POWER:
            return f"the power ^{exponent[:20]}"
    for match in _FACTORIAL.finditer(text):
        if not match[1].isdigit() or len(match[1]) > 4:
            return f"the factorial {match[1][:20]}!"
    return None


@functools.lru_cache(maxsize=4096)
def equivalent(expected: str, given: str) -> bool:
    """Whether two normalised answers mean the same; takes as long as it takes."""
    load()
    from math_verify import verify

    left, right = _parse(expected), _parse(given)
    if not left or not right:
        return False
    if not verify(left, right, allow_set_relation_comp=True, timeout_seconds=None):
        return False
    return _not_merely_close(left[0], right[0])


def _parse(text: str) -> list[Any]:
    from math_verify import LatexExtractionConfig, parse

    # no fallback to text: equal texts have been found out before
    return list(
        parse(f"${text}$", [LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=None)
    )


def _not_merely_close(left: Any, right: Any) -> bool:
    """Catch different numbers that the library takes for equal because both are tiny."""
    from sympy import Expr

    if not all(isinstance(x, Expr) and x.is_number and x.is_finite for x in (left, right)):
        return True
    first, second = (complex(x.evalf(30)) for x in (left, right))
    largest = max(abs(first), abs(second))
    if not math.isfinite(largest):
        return True
    if largest == 0.0:
        return bool((left - right).equals(0))
    return abs(first - second) <= _TOLERANCE * largest


def _depth(text: str) -> int:
    depth = deepest = 0
    for character in text:
        if character in "{([":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "})]":
            depth -= 1
    return deepest


def _power_size(base: str, exponent: str) -> float:
    """Return about how many digits a power of a number has; variables count as if they were 10."""
    digits = math.log10(float(base)) if re.fullmatch(r"\d+(\.\d+)?", base) and float(base) > 0 else 1.0
    return abs(digits) * (float(exponent) if len(exponent) < 20 else math.inf)


def _tower_is_high(text: str) -> bool:
    """Whether a power in an exponent can be large: `e^{x^2}` is harmless, `9^{9^9}` is not."""
    without_variables = re.sub(r"\\[a-zA-Z]+|[a-zA-Z]", "", text)
    return (
        re.search(r"\d\s*\}?\s*\)?\s*\^\s*[{(]?\s*\d+[^\^]*\^\s*[{(]?\s*(?:\d{2,}|[2-9])", without_variables)
        is not None
    )
