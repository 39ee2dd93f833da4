"""Instructions about words, letters and marks."""

import re
from collections.abc import Sequence

from nemo_skills.evaluation.graders.instructions.relation import holds

_PLACEHOLDER = re.compile(r"\[[^\[\]]*\]")
_WORD = re.compile(r"\w+(?:['’-]\w+)*")


def has_keywords(response: str, keywords: Sequence[str]) -> bool:
    """Whether all keywords occur, in any case."""
    return all(_count(response, keyword) for keyword in keywords)


def keyword_frequency(response: str, keyword: str, frequency: int, relation: str) -> bool:
    """Whether a keyword occurs so often."""
    return holds(_count(response, keyword), relation, frequency)


def avoids_words(response: str, forbidden_words: Sequence[str]) -> bool:
    """Whether none of the words occurs as a word of its own."""
    return not any(
        re.search(rf"(?<!\w){re.escape(word)}(?!\w)", response, re.IGNORECASE) for word in forbidden_words
    )


def letter_frequency(response: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    """Whether a letter, or another character, occurs so often, in any case."""
    return holds(response.lower().count(letter.lower()), let_relation, let_frequency)


def placeholders(response: str, num_placeholders: int) -> bool:
    """Whether there are at least so many placeholders such as `[address]`."""
    return len(_PLACEHOLDER.findall(response)) >= num_placeholders


def has_postscript(response: str, postscript_marker: str) -> bool:
    """Whether there is a postscript behind the marker; `P.S.` and `P.P.S` may be written with blanks."""
    letters = re.sub(r"[\s.]", "", postscript_marker)
    if letters.upper() in ("PS", "PPS"):
        marker = r"\.?\s?".join(map(re.escape, letters))
        # `PS` needs its dots, or every word that begins so would do
        pattern = rf"(?<!\w){marker}\.?(?=[\s:.,])" if "." not in marker else rf"(?<!\w){marker}"
    else:
        pattern = re.escape(postscript_marker)
    return re.search(rf"{pattern}.*\S", response, re.IGNORECASE) is not None


def capital_words(response: str, capital_frequency: int, capital_relation: str) -> bool:
    """Whether so many words are in capital letters."""
    return holds(sum(word.isupper() for word in _WORD.findall(response)), capital_relation, capital_frequency)


def no_comma(response: str) -> bool:
    """Whether there is no comma."""
    return "," not in response


def _count(response: str, keyword: str) -> int:
    return response.lower().count(keyword.lower())
