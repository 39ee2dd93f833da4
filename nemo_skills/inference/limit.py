"""How many requests a server gets at the same time: as many as make it faster, fewer when it objects.

Starts modest and doubles while that makes the server faster. Until the first answers are there nothing speaks
against more, so it doubles every quarter of a second: waiting for answers that take minutes would leave
most of a server idle. A server that asks for fewer requests gets fewer at once, and more again with care.
"""

import time
from collections.abc import Callable
from enum import Enum, auto

START = 16
_AFTER_OUTAGE = 4
_BLIND_S = 0.25
_PROBE_S = 5.0
_LONGEST_PROBE_S = 120.0
_SAMPLES = 32
_GAIN = 1.03
_ROOM = 1.25
_LEAST_FALL, _MOST_FALL, _OVERDUE_FALL, _QUEUE_FALL, _FORGET = 0.9, 0.5, 0.7, 0.8, 0.75


class _Phase(Enum):
    growing = auto()
    """Doubles up to a target."""
    steady = auto()
    probing = auto()
    """A quarter more for one round, to see whether answers come faster now."""


class Limit:
    """The limit of one server. Callers report what happens and call `tick` several times a second."""

    def __init__(
        self, cap: int, *, adaptive: bool = True, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.value = min(START, cap) if adaptive else cap
        self._cap = cap
        self._adaptive = adaptive
        self._clock = clock
        self._phase = _Phase.growing
        self._target = cap
        self._trusting = True
        """Whether nothing speaks against more: then it grows on no news, and stops when it brings no gain."""
        self._speed = 0.0
        """Tokens per second at the last level for which it is known."""
        self._before = self.value
        """The level to return to when the present one brings nothing."""
        self._sustained = self.value
        """The highest level with a whole round of answers and no refusal; fades with refusals."""
        self._latency = 0.0
        self._probe_after = _PROBE_S
        self._round_began = clock()
        self._refusals, self._refused_at = 0, self.value
        self._queue_is_long = False
        self._set(self.value)

    def finished(self, started: float, tokens: int) -> None:
        """Note an answer of so many tokens to a request sent at `started`."""
        seconds = self._clock() - started
        self._latency += (seconds - self._latency) * (0.1 if self._latency else 1.0)
        if started >= self._since:
            self._samples += 1
            self._tokens += tokens
            self._busy_s += seconds

    def refused(self, started: float) -> None:
        """Note that the server said it is too busy (429, 503)."""
        if not self._adaptive:
            return
        if started >= self._round_began:
            self._begin_round()
        # when it refuses 24 of 64 requests, it takes 40
        self._refusals += 1
        level = self._refused_at
        self._fall(max(level * _MOST_FALL, min(level * _LEAST_FALL, level - self._refusals)))

    def overdue(self, started: float) -> None:
        """Note that an answer did not come in time."""
        if self._adaptive and started >= self._round_began:
            self._begin_round()
            self._fall(self.value * _OVERDUE_FALL)

    def lost(self) -> None:
        """Note that the server is gone: once back it gets few requests, and soon as many as before."""
        if self._adaptive and self.value > _AFTER_OUTAGE:
            self._trusting, self._phase, self._speed = True, _Phase.growing, 0.0
            self._target = self.value
            self._set(_AFTER_OUTAGE)

    def queue(self, running: float, waiting: float, in_flight: int) -> None:
        """Note what the server says of the requests that it works on, and of those that wait their turn."""
        self._queue_is_long = waiting > 4 + running / 10
        if self._adaptive and waiting > max(8, running / 2) and START < self.value >= in_flight:
            self._settle(max(START, int(self.value * _QUEUE_FALL)))

    def tick(self, in_flight: int) -> None:
        """Change the limit where the answers of late, or their absence, call for it."""
        if not self._adaptive or in_flight < self.value * 0.8:
            return
        needed = max(_SAMPLES, self.value) if self._trusting else self.value
        known = self._samples >= needed
        if self._phase is _Phase.growing:
            self._grow(known=known)
        elif self._phase is _Phase.probing and known:
            self._judge_probe()
        elif self._phase is _Phase.steady and known:
            self._probe()

    def _grow(self, *, known: bool) -> None:
        if self.value >= self._target:
            self._settle(self.value)
        elif known:
            self._sustained = max(self._sustained, self.value)
            speed = self._measure()
            if self._trusting and speed < self._speed * _GAIN:
                self._settle(min(self.value, int(self._before * _ROOM)))
            else:
                self._speed = speed
                self._double()
        elif self._trusting and self._clock() - self._since >= max(_BLIND_S, 3 * self._latency):
            self._double()

    def _double(self) -> None:
        if not self._queue_is_long:
            self._before = self.value
            self._set(min(self.value * 2, self._target))

    def _probe(self) -> None:
        self._sustained = max(self._sustained, self.value)
        if self._queue_is_long or self._clock() - self._since < max(self._probe_after, 3 * self._latency):
            return
        if self.value < self._cap:
            self._speed, self._before = self._measure(), self.value
            self._phase = _Phase.probing
            self._set(min(int(self.value * _ROOM) + 1, self._cap))

    def _judge_probe(self) -> None:
        if self._measure() >= self._speed * _GAIN:
            self._sustained = max(self._sustained, self.value)
            self._speed, self._trusting = self._measure(), True
            self._phase, self._target, self._probe_after = _Phase.growing, self._cap, _PROBE_S
        else:
            self._probe_after = min(self._probe_after * 2, _LONGEST_PROBE_S)
            self._settle(self._before)

    def _begin_round(self) -> None:
        """Objections to requests that were sent before this moment belong together."""
        self._round_began = self._clock()
        self._refusals, self._refused_at = 0, self.value
        self._sustained = int(self._sustained * _FORGET)
        if self._phase is _Phase.probing:
            self._probe_after = min(self._probe_after * 2, _LONGEST_PROBE_S)

    def _fall(self, value: float) -> None:
        self._trusting, self._phase = False, _Phase.growing
        self._set(max(1, min(int(value), self.value)))
        self._target = max(self.value, self._sustained)

    def _settle(self, value: int) -> None:
        self._phase = _Phase.steady
        self._set(value)

    def _measure(self) -> float:
        """Return tokens per second at this level: by Little's law, so bursts of answers do not matter."""
        return self.value * max(self._tokens, self._samples) / max(self._busy_s, 1e-9)

    def _set(self, value: int) -> None:
        """Set the level; only requests sent from now on tell something about it."""
        self.value = value
        self._since = self._clock()
        self._samples = self._tokens = 0
        self._busy_s = 0.0
