"""Errors meant for people: one clear message, an exit code, no traceback."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can fix: a typo, a missing file, a dead server.

    Programs print the message on stderr and end with `exit_code`; a traceback would only hide the message.
    """

    def __init__(self, message: str, *, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class JobFailedError(UserError):
    """A job ended unsuccessfully; the exit code is the job's own."""


def require(condition: bool, message: str) -> None:
    """Raise a `UserError` unless a setting is as it must be; the message's full stop is added."""
    if not condition:
        raise UserError(f"{message}.")


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?` for the nearest of `choices`, or an empty string when none is near."""
    near = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.6)
    return f" Did you mean '{near[0]}'?" if near else ""
