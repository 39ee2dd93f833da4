"""Instructions about the language of a response."""

import functools
from collections.abc import Callable
from typing import Any, cast

from nemo_skills.core.errors import UserError


@functools.cache
def load() -> Callable[[str], tuple[str, Any]]:
    """Return a function that tells the language of a text.

    Raises:
        UserError: the library is not installed.
    """
    try:
        from py3langid import classify
    except ImportError as error:
        raise UserError(
            f"The ifeval grader needs the library py3langid ({error}): pip install 'nemo-skills[eval]'."
        ) from None
    return cast(Callable[[str], tuple[str, Any]], classify)


def is_in(response: str, language: str) -> bool:
    """Whether the response is in a language, given by its ISO 639-1 code (`zh-cn` is `zh`)."""
    return _language(response) == language.lower().partition("-")[0]


def english_capitals(response: str) -> bool:
    """Whether the response is English, without small letters."""
    return response.isupper() and _language(response) == "en"


def english_small_letters(response: str) -> bool:
    """Whether the response is English, without capital letters."""
    return response.islower() and _language(response) == "en"


def _language(text: str) -> str:
    # capital letters would confuse the detection
    return load()(text.lower())[0]
