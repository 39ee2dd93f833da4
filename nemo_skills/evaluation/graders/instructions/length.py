"""Instructions about numbers of words, sentences and paragraphs."""

import re

from nemo_skills.evaluation.graders.instructions.relation import holds

_WORD = re.compile(r"\w+")
_DIVIDER = re.compile(r"\s?\*\*\*\s?")
_ABBREVIATION = re.compile(
    r"\b(?:mr|mrs|ms|dr|prof|sr|jr|st|vs|etc|inc|ltd|co|no|vol|fig|approx|dept|gen|col|capt|lt|sgt|rev|hon)\.",
    re.IGNORECASE,
)
_INITIALS = re.compile(r"\b(?:[A-Za-z]\.){2,}|\b[A-Z]\.(?=\s[A-Z])|(?i:\b(?:e\.g|i\.e|a\.m|p\.m)\.)")
_LIST_NUMBER = re.compile(r"^\s*\d+\.(?=\s)", re.MULTILINE)
_SENTENCE_END = re.compile(r"[.!?…]+[\"'”’)\]*]*(?=\s|$)")
_LETTER_OR_DIGIT = re.compile(r"\w")


def sentences(response: str, num_sentences: int, relation: str) -> bool:
    """Whether there are so many sentences."""
    return holds(count_sentences(response), relation, num_sentences)


def count_sentences(text: str) -> int:
    """Count sentences: pieces with a letter or digit that end with a full stop or the like, or at the end.

    Full stops of abbreviations, initials and numbered lists end none, nor do line breaks.
    """
    for pattern in (_ABBREVIATION, _INITIALS, _LIST_NUMBER):
        text = pattern.sub(lambda match: match[0].replace(".", " "), text)
    return sum(_LETTER_OR_DIGIT.search(piece) is not None for piece in _SENTENCE_END.split(text))


def words(response: str, num_words: int, relation: str) -> bool:
    """Whether there are so many words."""
    return holds(len(_WORD.findall(response)), relation, num_words)


def paragraphs(response: str, num_paragraphs: int) -> bool:
    """Whether there are exactly so many paragraphs with `***` between; none may be empty."""
    parts = _DIVIDER.split(response)
    if parts and not parts[0].strip():
        parts = parts[1:]
    if parts and not parts[-1].strip():
        parts = parts[:-1]
    return len(parts) == num_paragraphs and all(part.strip() for part in parts)


def first_word_of_paragraph(response: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Whether there are so many paragraphs, with blank lines between, and one begins with a word."""
    parts = [part.strip() for part in response.split("\n\n") if part.strip()]
    if len(parts) != num_paragraphs or not 1 <= nth_paragraph <= len(parts):
        return False
    word = re.match(r"[\"'“‘*_]*([^\s.,?!:;\"'”’*_]*)", parts[nth_paragraph - 1])
    return word is not None and word[1].lower() == first_word.lower()
