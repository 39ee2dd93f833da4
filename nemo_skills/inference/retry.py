"""What went wrong with a request, whether to try again, and when."""

import random
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from enum import StrEnum

import orjson

from nemo_skills.core.errors import UserError

_CONTEXT_LENGTH = re.compile(
    r"context_length_exceeded|context[ _]length|context window|maximum (?:model|input|sequence) length"
    r"|max_model_len|max_seq_len|too many (?:input )?tokens|prompt is too long"
    r"|longer than the (?:maximum|model)",
    re.IGNORECASE,
)
_NO_CREDIT = re.compile(r"insufficient_quota|billing|out of credits", re.IGNORECASE)
_BUSY = frozenset({429, 503, 529})
_SHOWN = 500
_NO_RUSH_S = 0.1


class Kind(StrEnum):
    """Classes of failures."""

    retryable = "retryable"
    busy = "busy"
    timeout = "timeout"
    connection = "connection"
    context_length = "context_length"
    bad_request = "bad_request"
    auth = "auth"
    gone = "gone"
    sandbox = "sandbox"
    """Not the server's: code that the model wrote could not be run."""


RETRIED = frozenset({Kind.retryable, Kind.busy, Kind.timeout, Kind.connection, Kind.sandbox})
FATAL = frozenset({Kind.auth, Kind.gone})


class RequestError(Exception):
    """A request that brought no answer."""

    def __init__(self, kind: Kind, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.retry_after = retry_after


class RowFailedError(Exception):
    """A row that gets no answer in this run."""

    def __init__(self, kind: Kind, message: str, attempts: int) -> None:
        super().__init__(message)
        self.kind = kind
        self.attempts = attempts


class RunStoppedError(UserError):
    """No further row can succeed, so the run ends; finished rows are kept."""

    def __init__(self, message: str) -> None:
        super().__init__(message, exit_code=1)


def classify(status: int, headers: Mapping[str, str], body: bytes) -> RequestError:
    """Return the error that an HTTP answer other than 200 stands for."""
    text = _error_text(body)
    message = f"HTTP {status}: {text}" if text else f"HTTP {status}"
    return RequestError(_kind(status, text), message, retry_after_seconds(headers))


def _kind(status: int, text: str) -> Kind:
    if status in (401, 402, 403) or (status == 429 and _NO_CREDIT.search(text)):
        return Kind.auth
    if status in (404, 405, 410):
        return Kind.gone
    # vLLM answers 400, others 413 or 422; some wrap it into a 500
    if _CONTEXT_LENGTH.search(text) and status in (400, 413, 422, 500):
        return Kind.context_length
    if status in _BUSY:
        return Kind.busy
    if status in (408, 409, 425) or (status >= 500 and status != 501):
        return Kind.retryable
    return Kind.bad_request


def _error_text(body: bytes) -> str:
    """Return the message inside an error answer, whatever its form, in one short line."""
    text = body.decode(errors="replace")
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError:
        data = None
    if isinstance(data, dict):
        inner = data.get("error", data)
        found = (
            [inner.get(key) for key in ("message", "code", "detail")] if isinstance(inner, dict) else [inner]
        )
        # a number there only repeats the status
        text = " ".join(str(part) for part in found if part and not isinstance(part, int)) or text
    return " ".join(text.split())[:_SHOWN]


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """Return what `Retry-After` asks for, given in seconds or as a date; names are in lower case."""
    with suppress(KeyError, ValueError):
        return max(0.0, float(headers["retry-after-ms"]) / 1000)
    value = headers.get("retry-after", "").strip()
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """Exponential back-off with full jitter, within a budget of wall-clock time."""

    budget_s: float
    max_wait_s: float = 60.0
    first_wait_s: float = 0.5


@dataclass(kw_only=True)
class Attempts:
    """The attempts at one request."""

    policy: RetryPolicy
    count: int = 0
    first_failure: float | None = field(default=None)

    def trying_for(self) -> float:
        """Return for how many seconds all attempts have failed."""
        return 0.0 if self.first_failure is None else time.monotonic() - self.first_failure

    def excuse(self, seconds: float) -> None:
        """Do not count so many seconds, in which the request had to wait for its turn."""
        if self.first_failure is not None:
            self.first_failure += seconds

    def next_wait(self, error: RequestError) -> float:
        """Return how long to wait before trying again; what the server asks for comes on top.

        Raises:
            RowFailedError: trying again is of no use, or the budget does not allow it.
        """
        self.count += 1
        now = time.monotonic()
        if error.kind not in RETRIED:
            raise RowFailedError(error.kind, str(error), self.count)
        if self.first_failure is None:
            self.first_failure = now
        limit: float = min(self.policy.max_wait_s, self.policy.first_wait_s * 2 ** min(self.count - 1, 30))
        wait = random.uniform(0.1, 1.0) * limit
        if error.kind is Kind.connection:
            # the pool lets nobody through before the server can be reached again
            wait = random.uniform(0.0, _NO_RUSH_S)
        if now + wait > self.first_failure + self.policy.budget_s:
            raise RowFailedError(error.kind, str(error), self.count)
        return wait
