"""Grades mathematics: finds the final answer, compares it with the expected one."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

from nemo_skills.core.errors import UserError
from nemo_skills.core.hydra import opt
from nemo_skills.evaluation.graders.mathematics import extraction, symbolic
from nemo_skills.evaluation.graders.mathematics.compare import Sameness, compare, is_number
from nemo_skills.evaluation.verdicts import Grade, Verdict

Way = Literal["boxed", "hashes", "sentence", "number"]


@dataclass(frozen=True, kw_only=True)
class MathOptions:
    """Where the answer is, and how exactly it must agree."""

    extract: list[Way] = opt(
        ["boxed", "hashes", "sentence", "number"],
        r"ways to find the answer, tried in turn: \boxed{…}, #### …, 'the answer is …', the last number",
    )
    extract_regex: str | None = opt(
        None, "regular expression instead; its last match counts, and of that the first group"
    )
    tolerance: float = opt(1e-6, "largest relative difference to a decimal fraction")
    generation_key: str = opt("generation", "key of what the model wrote")
    expected_answer_key: str = opt("expected_answer", "key of the right answer, or a list of right ones")

    def __post_init__(self) -> None:
        """Check the expression."""
        if self.tolerance < 0:
            raise UserError("tolerance must be 0 or more.")
        try:
            re.compile(self.extract_regex or "")
        except re.error as error:
            raise UserError(f"extract_regex: {error}: {self.extract_regex}") from None


class Found(NamedTuple):
    """An answer and how it was found."""

    text: str
    way: str


# of each kind one: what they load and compute once is not done again in every process
_WARM_UP = (
    ("x^2+2x+1", "(x+1)^2"),
    ("(x+3)(x-4)", "x^2-x-12"),
    ("(y+2)(y+5)", "y^2+7y-10"),
    ("3x^3-2x+7", "7-2x+3x^3"),
    ("2x+3y=6", "y=2-\\frac{2x}{3}"),
    (r"\{1,2\}", r"\{2,1\}"),
    (r"\frac{1}{2}\sqrt{8}", r"\sqrt{2}"),
    (r"\frac{7}{12}x", r"\frac{14x}{24}"),
    (r"\frac{5}{9}x", r"\frac{10x}{19}"),
    (r"5\sqrt{3}", r"\sqrt{75}"),
    (r"4\sqrt{7}", r"\sqrt{113}"),
    (r"\frac{1+\sqrt{5}}{2}", r"\frac{\sqrt{5}+1}{2}"),
    ("(1,2]", r"1 < x \le 2"),
    (r"(-\infty,2)\cup(3,\infty)", "(3,oo)U(-oo,2)"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\3\end{pmatrix}"),
    (r"\begin{pmatrix}3\\5\end{pmatrix}", r"\begin{pmatrix}\frac{6}{2}\\5\end{pmatrix}"),
    (r"\sin x", r"\cos x"),
    (r"\frac{\pi}{4}", r"\pi/4"),
    (r"2^{10}", "1024"),
    (r"e^{x}", "e^{2x}"),
    (r"\log_2 8", "3i"),
    ("2+3i", "3i+2"),
    ("(1,2,3)", "(1, 2, 4)"),
    (r"\binom{5}{2}", "10"),
)
"""Pairs of the usual kinds: parsers and sympy build tables for each, which all workers then share."""


class MathGrader:
    """Symbolic comparison behind exact and numeric checks."""

    Options: ClassVar[type] = MathOptions
    measure: ClassVar[str] = "symbolic_correct"
    version: ClassVar[int] = 2
    timeout_s: ClassVar[float] = 5.0
    soft_timeout_s: ClassVar[float | None] = 0.03

    def __init__(self, options: MathOptions) -> None:
        self._options = options
        self._pattern = re.compile(options.extract_regex, re.DOTALL) if options.extract_regex else None

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys that every row must have."""
        return (self._options.generation_key, self._options.expected_answer_key)

    def warm_up(self) -> None:
        """Import math-verify, and let its parser build its tables."""
        symbolic.load()
        for expected, given in _WARM_UP:
            symbolic.equivalent(expected, given)

    def grade(self, row: Mapping[str, Any]) -> Grade:
        """Grade the answer in a row."""
        expected = _expected(row[self._options.expected_answer_key])
        found = self.find(row, expected)
        if found is None:
            return Grade(verdict=Verdict.no_answer)
        outcomes = {compare(one, found.text, self._options.tolerance) for one in expected}
        if Sameness.same in outcomes:
            verdict, why = Verdict.correct, {}
        elif Sameness.unknown in outcomes:
            verdict, why = Verdict.timed_out, {"error": "too large or deep to be compared"}
        else:
            verdict, why = Verdict.incorrect, {}
        return Grade(verdict=verdict, predicted_answer=found.text, details={"found_by": found.way, **why})

    def find(self, row: Mapping[str, Any], expected: Sequence[str]) -> Found | None:
        """Find the answer in what the model wrote."""
        text = extraction.after_reasoning(_text(row[self._options.generation_key]))
        if self._pattern is not None:
            answer = extraction.by_pattern(self._pattern, text)
            return Found(extraction.clean(answer), "regex") if answer and answer.strip() else None
        for way in self._options.extract:
            if way == "number" and not _may_end_in_a_number(row, text, expected):
                continue
            answer = _WAYS[way](text)
            if answer:
                return Found(extraction.clean(answer), way)
            if way == "boxed" and extraction.has_box(text):
                return None
        return None


_WAYS = {
    "boxed": extraction.last_boxed,
    "hashes": extraction.after_hashes,
    "sentence": extraction.after_answer_is,
    "number": extraction.last_number,
}


def _may_end_in_a_number(row: Mapping[str, Any], text: str, expected: Sequence[str]) -> bool:
    """Whether a number can be the final answer: not where the answer was cut off, nor if text is expected."""
    cut = row.get("finish_reason") == "length"
    return bool(text) and not cut and any(map(is_number, expected))


def _expected(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    if not values or any(v is None or isinstance(v, dict) for v in values):
        raise UserError("the expected answer is missing")
    return [str(v) for v in values]


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    raise UserError(f"the generation is {type(value).__name__}, not a text")
