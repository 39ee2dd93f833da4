"""Caps per minute, as hosted services have them."""

import time
from collections.abc import Callable

_BURST_S = 1.0


class RateCap:
    """At most so many units in any minute, spread evenly: what exceeds a second's worth has to wait."""

    def __init__(self, per_minute: float, clock: Callable[[], float] = time.monotonic) -> None:
        # a second less than a minute's worth per minute, because a burst of a second may come on top
        self._seconds_per_unit = (60.0 + _BURST_S) / per_minute
        self._clock = clock
        self._paid_until = clock()

    def wait(self) -> float:
        """Return for how many seconds nothing may be sent."""
        return max(0.0, self._paid_until - self._clock() - _BURST_S)

    def spend(self, units: float) -> None:
        """Note that so many units are sent; a negative number gives back what was noted in excess."""
        start = max(self._paid_until, self._clock()) if units > 0 else self._paid_until
        self._paid_until = start + units * self._seconds_per_unit


class TokenEstimate:
    """Guesses the tokens of a request before its answer is there."""

    _BYTES_PER_TOKEN = 4.0

    def __init__(self, longest_answer: int) -> None:
        self._answer = float(longest_answer)
        self._per_byte = 1 / self._BYTES_PER_TOKEN

    def of(self, prompt_bytes: int) -> float:
        """Return the tokens that a request will cost, prompt and answer together."""
        return prompt_bytes * self._per_byte + self._answer

    def learn(self, prompt_bytes: int, prompt_tokens: int, answer_tokens: int) -> None:
        """Take an answer into account."""
        self._answer += (answer_tokens - self._answer) * 0.1
        if prompt_bytes and prompt_tokens:
            self._per_byte += (prompt_tokens / prompt_bytes - self._per_byte) * 0.1
