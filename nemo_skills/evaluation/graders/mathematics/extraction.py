"""Finds the final answer in what a model wrote."""

import re
from collections import deque

_REASONING_BEGINS, _REASONING_ENDS = "<think>", "</think>"
_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?:\{|([^\s{}\\]))")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_HASHES = re.compile(r"####[ \t]*(\S.*)")
# on text whose blanks are single, or runs of blanks would take cubic time
_SENTENCE = re.compile(
    r"\banswer\b ?(?:\([^()\n]{0,60}\)|(?:to|for|of)\b[^.\n:=]{1,80}?)? ?(?:\*\*)? ?(?:(?:is|was|are)\b|:|=)"
    r"(?! ?not\b)(?: ?(?:therefore|thus|then|simply|just|equal to|:|=))* ?(?:\*\*(?=\s))?\s{0,3}(\S[^\n]*)",
    re.IGNORECASE,
)
_BLANKS = re.compile(r"[^\S\n]+")
_NUMBER = re.compile(r"(?<![\w.])-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?%?|(?<![\w.])-?\.\d+%?")
_THOUSANDS = re.compile(r"(?<=\d)(?:\{,\}|\\,)(?=\d{3}(?!\d))")
_SENTENCE_END = re.compile(r"[.;!?](?=\s|$)|,?\s+(?:because|since)\b|(?<!\\),\s+(?:so|which|as|where|and)\b")
_WRAPPED = re.compile(r"^(\*\*|\$\$|\$|`|\\\(|\\\[)\s*(.*?)\s*(\*\*|\$\$|\$|`|\\\)|\\\])")
_LAYERS = 4
_CLOSES = {"**": "**", "$$": "$$", "$": "$", "`": "`", r"\(": r"\)", r"\[": r"\]"}


def after_reasoning(text: str) -> str:
    """Return what stands after the model's reasoning; nothing, if that was begun and never ended."""
    _, end, after = text.rpartition(_REASONING_ENDS)
    return "" if not end and after.lstrip().startswith(_REASONING_BEGINS) else after


def has_box(text: str) -> bool:
    """Whether a box was begun."""
    return _BOX.search(text) is not None


def last_boxed(text: str) -> str | None:
    r"""Return the content of the last `\boxed{}`; None without one, or when it was cut off in the middle.

    Braces inside are counted, escaped ones not. Takes linear time, whatever the nesting.
    """
    last = _last(_BOX, text)
    if last is None or last[1] is not None:
        return last and last[1]
    end = _closing_brace(text, last.end())
    return None if end is None else text[last.end() : end].strip()


def after_hashes(text: str) -> str | None:
    """Return what follows the last `####` on its line."""
    found = _HASHES.findall(text)
    return clean(found[-1]) if found else None


def after_answer_is(text: str) -> str | None:
    """Return what the last sentence of the form `the answer is …` says."""
    found = _SENTENCE.findall(_BLANKS.sub(" ", text))
    return _end_of_sentence(found[-1]) if found else None


def last_number(text: str) -> str | None:
    """Return the last number."""
    last = _last(_NUMBER, _THOUSANDS.sub(",", text))
    return last[0] if last else None


def by_pattern(pattern: re.Pattern[str], text: str) -> str | None:
    """Return the first group of the last match of a regular expression, or all of it without groups.

    Matches with nothing in them do not count: `(.*)` also matches behind the last character.
    """
    group = 1 if pattern.groups else 0
    answers = (match[group] or "" for match in pattern.finditer(text))
    last = deque((answer for answer in answers if answer.strip()), maxlen=1)
    return last[0] if last else None


def clean(text: str) -> str:
    """Remove what surrounds an answer: markup, mathematics delimiters, a full stop."""
    text = text.strip()
    for _ in range(_LAYERS):
        match = _WRAPPED.match(text)
        if match is None or match[3] != _CLOSES[match[1]]:
            break
        rest = text[match.end() :].strip(" .!")
        text = f"{match[2]} {rest}".strip() if rest else match[2]
    text = text.rstrip()
    return text[:-1].rstrip() if text.endswith((".", ";")) else text


def _end_of_sentence(text: str) -> str:
    text = text.strip()
    match = _WRAPPED.match(text)
    if match is not None and match[3] == _CLOSES[match[1]] and match[2]:
        # units may follow, but not another sentence
        rest = _cut(text[match.end() :])
        return clean(text[: match.end()] + rest)
    boxed = last_boxed(text)
    return boxed if boxed is not None else clean(_cut(text))


def _cut(text: str) -> str:
    match = _SENTENCE_END.search(text)
    return text[: match.start()] if match else text


def _closing_brace(text: str, start: int) -> int | None:
    depth = 1
    for match in _BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return match.start()
    return None


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    last = deque(pattern.finditer(text), maxlen=1)
    return last[0] if last else None
