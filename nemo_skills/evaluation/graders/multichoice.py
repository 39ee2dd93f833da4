"""Grades multiple choice: finds the letter that was chosen."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from nemo_skills.core.errors import UserError
from nemo_skills.core.hydra import opt
from nemo_skills.evaluation.graders.mathematics import extraction
from nemo_skills.evaluation.graders.mathematics.latex import without_text
from nemo_skills.evaluation.verdicts import Grade, Verdict

_ADVERB = r"(?:definitely|probably|likely|most likely|clearly|indeed|certainly|therefore|thus)"
_LETTER = re.compile(
    rf"[\s(\[{{*_`$\"']*(?:{_ADVERB}\s+)?(?:the\s+)?(?:option|choice|letter)?\s*[(\[*]*([A-Z])(?![A-Za-z'])",
    re.IGNORECASE,
)
_ALONE = re.compile(r"^[\s(\[*_`]*([A-Z])[\s)\].:*_`]*$", re.MULTILINE)
_LABEL = re.compile(r"^\s*[(*]*([A-Z])(?:[).:*]+(?:\s|$)|\s*$)", re.MULTILINE)
# `A dog` and `I think` begin with words, `A is right` with a letter
_WORDS = ("A", "I")
_AFTER_WORD = re.compile(r"\s+(?!(?:is|was|because|since|as|and)\b)[a-z]")
_CUT = "length"


@dataclass(frozen=True, kw_only=True)
class MultichoiceOptions:
    """Where the answer is."""

    extract_regex: str | None = opt(
        None, "regular expression for the letter; its last match counts, and of that the first group"
    )
    generation_key: str = opt("generation", "key of what the model wrote")
    expected_answer_key: str = opt("expected_answer", "key of the right letter")
    options_key: str = opt(
        "options", "key of the list of options; an answer may repeat one instead of its letter"
    )

    def __post_init__(self) -> None:
        """Check the expression."""
        try:
            re.compile(self.extract_regex or "")
        except re.error as error:
            raise UserError(f"extract_regex: {error}: {self.extract_regex}") from None


class MultichoiceGrader:
    """Compares letters."""

    Options: ClassVar[type] = MultichoiceOptions
    measure: ClassVar[str] = "correct"
    version: ClassVar[int] = 2
    timeout_s: ClassVar[float] = 5.0
    soft_timeout_s: ClassVar[float | None] = None

    def __init__(self, options: MultichoiceOptions) -> None:
        self._options = options
        self._pattern = re.compile(options.extract_regex) if options.extract_regex else None

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys that every row must have."""
        return (self._options.generation_key, self._options.expected_answer_key)

    def warm_up(self) -> None:
        """Import nothing: nothing is needed."""

    def grade(self, row: Mapping[str, Any]) -> Grade:
        """Grade the choice in a row."""
        options = row.get(self._options.options_key)
        texts = [str(option) for option in options] if isinstance(options, list) else []
        text = extraction.after_reasoning(str(row[self._options.generation_key]))
        letter = self.find(text, texts, cut=row.get("finish_reason") == _CUT)
        if letter is None:
            return Grade(verdict=Verdict.no_answer)
        expected = str(row[self._options.expected_answer_key]).strip(" ().").upper()
        verdict = Verdict.correct if letter == expected else Verdict.incorrect
        return Grade(verdict=verdict, predicted_answer=letter)

    def find(self, text: str, options: Sequence[str], *, cut: bool) -> str | None:
        """Return the chosen letter.

        Args:
            text: what the model wrote.
            options: the texts of the options, if they are known.
            cut: whether it ended in the middle, so that what stands last means nothing.
        """
        if self._pattern is not None:
            answer = extraction.by_pattern(self._pattern, text)
            return _letter(answer, options) if answer else None
        if extraction.has_box(text):
            boxed = extraction.last_boxed(text)
            return _letter(boxed, options) if boxed else None
        sentence = extraction.after_answer_is(text)
        letter = _letter(sentence, options) if sentence else None
        if letter is not None or cut:
            return letter
        alone = _ALONE.findall(text)
        if alone:
            return str(alone[-1])
        # a text that goes through the options begins with one, too
        labels = _LABEL.findall(text)
        return str(labels[0]) if _LABEL.match(text) and len(set(labels)) == 1 else None


def _letter(answer: str, options: Sequence[str]) -> str | None:
    """Return the letter that an answer is, begins with, or says the option of."""
    answer = without_text(answer)[0].strip()
    same = [i for i, option in enumerate(options) if _plain(option) == _plain(answer)]
    match = _LETTER.match(answer)
    if match and (not same or len(answer) == 1):
        word = match[1].upper() in _WORDS and _AFTER_WORD.match(answer, match.end())
        if not word:
            return match[1].upper()
    return chr(ord("A") + same[0]) if same else None


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).strip(" .$*")
