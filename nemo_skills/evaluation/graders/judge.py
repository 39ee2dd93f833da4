"""Grades by what a model, the judge, has written about an answer."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from nemo_skills.core.errors import UserError
from nemo_skills.core.hydra import opt
from nemo_skills.evaluation.verdicts import Grade, Verdict


@dataclass(frozen=True, kw_only=True)
class JudgeOptions:
    """Where the judge's words are, and how it says yes."""

    judgement_key: str = opt("judgement", "key of what the judge has written")
    answer_key: str = opt("predicted_answer", "key of the answer that was judged; null is no answer")
    pattern: str = opt(
        r"judge?ment\W*\s*(yes|no)\b",
        "regular expression for the judge's last word, in any case; its first group is yes, true or correct",
    )

    def __post_init__(self) -> None:
        """Check the expression."""
        try:
            groups = re.compile(self.pattern).groups
        except re.error as error:
            raise UserError(f"pattern: {error}: {self.pattern}") from None
        if groups < 1:
            raise UserError(f"pattern has no group: {self.pattern}")


class JudgeGrader:
    """Reads verdicts of a model. One that cannot be read says nothing about the answer."""

    Options: ClassVar[type] = JudgeOptions
    measure: ClassVar[str] = "judge_correct"
    version: ClassVar[int] = 2
    timeout_s: ClassVar[float] = 10.0
    soft_timeout_s: ClassVar[float | None] = None

    def __init__(self, options: JudgeOptions) -> None:
        self._options = options
        self._pattern = re.compile(options.pattern, re.IGNORECASE)

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys that every row must have."""
        return (self._options.judgement_key,)

    def warm_up(self) -> None:
        """Import nothing: nothing is needed."""

    def grade(self, row: Mapping[str, Any]) -> Grade:
        """Take the judge's last word."""
        answer = row.get(self._options.answer_key)
        if answer is None:
            # the judge was not shown what the grader before it did not get to see
            broke = row.get("verdict") in (Verdict.timed_out, Verdict.grader_error)
            return Grade(verdict=Verdict(row["verdict"]) if broke else Verdict.no_answer)
        said = str(row[self._options.judgement_key] or "")
        matches = list(self._pattern.finditer(said))
        if not matches:
            return Grade(
                verdict=Verdict.grader_error,
                predicted_answer=str(answer),
                details={"error": "the judge gave no verdict"},
            )
        word = (matches[-1][1] or "").lower()
        verdict = Verdict.correct if word in ("yes", "true", "correct") else Verdict.incorrect
        return Grade(verdict=verdict, predicted_answer=str(answer))
