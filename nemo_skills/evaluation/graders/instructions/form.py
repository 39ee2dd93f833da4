"""Instructions about the form of a response."""

import json
import re

# not emphasis at the beginning of a line, and no rule
_BULLET = re.compile(r"^[^\S\n]*(?:\*(?!\*)|-(?!-))[^\S\n]*\S", re.MULTILINE)
_HIGHLIGHT = re.compile(r"\*\*([^*\n]+)\*\*|\*([^*\n]+)\*")
_TITLE = re.compile(r"<<[^\n<>]+>>")
_CONSTRAINED = ("my answer is yes.", "my answer is no.", "my answer is maybe.")
_TWO = "******"
_QUOTES = "\"'“”‘’ \n"


def bullets(response: str, num_bullets: int) -> bool:
    """Whether there are exactly so many bullet points, with `*` or `-`."""
    return len(_BULLET.findall(response)) == num_bullets


def is_one_of_three(response: str) -> bool:
    """Whether it says `My answer is yes.`, `no.` or `maybe.`."""
    said = response.strip().lower()
    return any(answer in said for answer in _CONSTRAINED)


def highlights(response: str, num_highlights: int) -> bool:
    """Whether at least so many parts are highlighted with asterisks."""
    found = sum(bool((double or single).strip()) for double, single in _HIGHLIGHT.findall(response))
    return found >= num_highlights


def sections(response: str, section_spliter: str, num_sections: int) -> bool:
    """Whether there are at least so many numbered sections such as `SECTION 1`."""
    return len(re.findall(rf"\s?{re.escape(section_spliter)}\s?\d+\s?", response)) >= num_sections


def is_json(response: str) -> bool:
    """Whether all of it is JSON, in a code block perhaps."""
    text = re.sub(r"^```(?:json)?\s*|\s*```$", "", response.strip(), flags=re.IGNORECASE)
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def has_title(response: str) -> bool:
    """Whether there is a title such as `<<poem of joy>>`."""
    return any(title.strip("<> ") for title in _TITLE.findall(response))


def two_responses(response: str) -> bool:
    """Whether there are two different responses with six asterisks between."""
    parts = [part.strip() for part in response.split(_TWO)]
    # asterisks at the very beginning or end separate nothing
    if parts and not parts[0]:
        parts = parts[1:]
    if parts and not parts[-1]:
        parts = parts[:-1]
    return len(parts) == 2 and all(parts) and parts[0] != parts[1]


def repeats(response: str, prompt_to_repeat: str) -> bool:
    """Whether it begins with the prompt."""
    return response.strip().lower().startswith(prompt_to_repeat.strip().lower())


def ends_with(response: str, end_phrase: str) -> bool:
    """Whether it ends with a phrase, quotes aside."""
    return response.strip(_QUOTES).lower().endswith(end_phrase.strip(_QUOTES).lower())


def is_quoted(response: str) -> bool:
    """Whether all of it stands in double quotes."""
    text = response.strip()
    return len(text) > 1 and text[0] in '"“' and text[-1] in '"”'
