"""How many requests a server gets at the same time: as many as make it faster, fewer when it objects.

Starts modest and doubles while that makes the server faster. Until answers come nothing speaks against more,
so it doubles every tenth of a second: waiting for answers that take minutes would leave most of a server
idle. Later it tries now and then whether a bit more is faster, or a bit less as fast. A server that says it
makes no request wait gets more, whatever its speed of the moment. One that asks for fewer requests gets fewer
at once, and more again with care.
"""

import time
from collections.abc import Callable
from enum import Enum, auto

START = 16
_AFTER_OUTAGE = 4
_FEWEST_SAMPLES = 8
_BLIND_S = 0.1
_BLIND_ROUNDS = 2.0
_TRY_AFTER_S, _LONGEST_TRY_AFTER_S = 5.0, 60.0
_MORE, _LESS = 1.25, 0.67
_GAIN, _AS_FAST = 1.04, 0.97
_LEAST_FALL, _MOST_FALL, _OVERDUE_FALL, _QUEUE_FALL, _FORGET = 0.9, 0.5, 0.7, 0.8, 0.75


class _Phase(Enum):
    growing = auto()
    """Doubles up to a target."""
    steady = auto()
    comparing = auto()
    """Measures how fast it is now, before it tries another level."""
    trying = auto()
    """At another level for a while, to see whether that is better."""


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
        self._try_after = _TRY_AFTER_S
        self._tried_more = False
        self._round_began = clock()
        self._refusals, self._refused_at = 0, self.value
        self._queue_is_known = self._queue_is_long = False
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
        if started > self._round_began:
            self._begin_round()
        # when it refuses 24 of 64 requests, it takes 40
        self._refusals += 1
        level = self._refused_at
        self._fall(max(level * _MOST_FALL, min(level * _LEAST_FALL, level - self._refusals)))

    def overdue(self, started: float) -> None:
        """Note that an answer did not come in time."""
        if self._adaptive and started > self._round_began:
            self._begin_round()
            self._fall(self.value * _OVERDUE_FALL)

    def lost(self) -> None:
        """Note that the server is gone: once back it gets few requests, and soon as many as before."""
        if self._adaptive and self.value > _AFTER_OUTAGE:
            self._trusting, self._phase = True, _Phase.growing
            self._speed = self._latency = 0.0
            self._target = self.value
            self._set(_AFTER_OUTAGE)

    def queue(self, running: float, waiting: float, in_flight: int) -> None:
        """Note what the server says of the requests that it works on, and of those that wait their turn."""
        self._queue_is_known = True
        self._queue_is_long = waiting > 4 + running / 10
        if self._adaptive and waiting > max(8, running / 2) and START < self.value >= in_flight:
            self._settle(max(START, int(self.value * _QUEUE_FALL)))
        elif self._trusting and self._phase is _Phase.steady and self._nothing_waits:
            self._phase, self._target = _Phase.growing, self._cap

    def tick(self, in_flight: int) -> None:
        """Change the limit where the answers of late, or their absence, call for it."""
        if not self._adaptive or in_flight < self.value * 0.8:
            return
        # two rounds of answers are compared; one is enough to see that nothing was refused
        rounds = 1 if self._phase is _Phase.growing else 2
        known = self._samples >= max(_FEWEST_SAMPLES, self.value * rounds)
        if self._phase is _Phase.growing:
            self._grow(known=known)
        elif self._phase is _Phase.steady:
            self._compare()
        elif known and self._phase is _Phase.comparing:
            self._try()
        elif known:
            self._judge()

    def _grow(self, *, known: bool) -> None:
        if self.value >= self._target:
            self._settle(self.value)
        elif known:
            self._sustained = max(self._sustained, self.value)
            speed = self._measure()
            if self._trusting and not self._nothing_waits and speed < self._speed * _GAIN:
                self._settle(min(self.value, int(self._before * _MORE)))
            else:
                self._speed = speed
                self._double()
        elif self._trusting and self._age() >= max(_BLIND_S, _BLIND_ROUNDS * self._latency):
            self._double()

    @property
    def _nothing_waits(self) -> bool:
        return self._queue_is_known and not self._queue_is_long

    def _double(self) -> None:
        if not self._queue_is_long:
            self._before = self.value
            self._set(min(self.value * 2, self._target))

    def _compare(self) -> None:
        """Begin to measure the speed of now: what was measured earlier was another kind of rows."""
        if self._age() >= max(self._try_after, _BLIND_ROUNDS * self._latency):
            self._phase = _Phase.comparing
            self._set(self.value)

    def _try(self) -> None:
        """Take turns in trying more and less; a server that tells its queue shows what is too much."""
        self._sustained = max(self._sustained, self.value)
        self._speed, self._before = self._measure(), self.value
        self._tried_more = not self._tried_more or self._queue_is_known
        value = min(int(self.value * _MORE) + 1, self._cap)
        if not self._tried_more:
            value = max(int(self.value * _LESS), 1)
        if value == self.value or (self._tried_more and self._queue_is_long):
            self._settle(self.value)
            return
        self._phase = _Phase.trying
        self._set(value)

    def _judge(self) -> None:
        speed = self._measure()
        if self.value < self._before:
            good = speed >= self._speed * _AS_FAST
        else:
            good = speed >= self._speed * _GAIN
            self._sustained = max(self._sustained, self.value)
        self._try_after = _TRY_AFTER_S if good else min(self._try_after * 2, _LONGEST_TRY_AFTER_S)
        if good and self.value > self._before:
            self._phase, self._target, self._trusting = _Phase.growing, self._cap, True
            self._speed = speed
        else:
            self._settle(self.value if good else self._before)

    def _begin_round(self) -> None:
        """Objections to requests that were sent before this moment belong together."""
        self._round_began = self._clock()
        self._refusals, self._refused_at = 0, self.value
        self._sustained = int(self._sustained * _FORGET)
        if self._phase is _Phase.trying:
            self._try_after = min(self._try_after * 2, _LONGEST_TRY_AFTER_S)

    def _fall(self, value: float) -> None:
        self._trusting, self._phase = False, _Phase.growing
        self._set(max(1, min(int(value), self.value)))
        self._target = max(self.value, self._sustained)

    def _settle(self, value: int) -> None:
        self._phase = _Phase.steady
        self._set(value)

    def _age(self) -> float:
        return self._clock() - self._since

    def _measure(self) -> float:
        """Return tokens per second at this level: by Little's law, so bursts of answers do not matter."""
        return self.value * max(self._tokens, self._samples) / max(self._busy_s, 1e-9)

    def _set(self, value: int) -> None:
        """Set the level; only requests sent from now on tell something about it."""
        self.value = value
        self._since = self._clock()
        self._samples = self._tokens = 0
        self._busy_s = 0.0
