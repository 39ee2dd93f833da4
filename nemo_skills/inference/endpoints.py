"""The servers that answer: who gets the next request, and when it may be sent."""

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import urlsplit

from nemo_skills.core.log import get_logger
from nemo_skills.inference.limit import Limit
from nemo_skills.inference.ratecap import RateCap, TokenEstimate
from nemo_skills.inference.retry import RunStoppedError
from nemo_skills.inference.server.ready import Endpoint

_TICK_S = 0.1
_KNOCK_S = 1.0
_KNOCK_TIMEOUT_S = 5.0
_PROXY_KNOCKS = 5
_KEPT = "Finished rows are kept: run the same command again later."
_log = get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Load:
    """How much the servers may be asked."""

    most_in_flight: int
    adaptive: bool = True
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    longest_answer: int = 2048
    """Tokens that a request is taken to cost for tokens_per_minute until its answer is there."""
    outage_s: float = 120.0
    """The run stops when no server can be reached for so long."""
    longest_pause_s: float = 600.0
    """The run stops when all servers ask for a longer pause."""


_Waiter = tuple[asyncio.Future["EndpointState"], int]


class ServerStatus(NamedTuple):
    """How a server is doing, for people."""

    address: str
    in_flight: int
    limit: int
    queued: float | None
    """Requests that wait inside the server, where it says."""
    down: bool


class EndpointState:
    """One server and how it is doing."""

    def __init__(self, endpoint: Endpoint, limit: Limit) -> None:
        self.endpoint = endpoint
        self.limit = limit
        self.in_flight = 0
        self.paused_until = 0.0
        """The server asked for no request before this moment."""
        self.down_since: float | None = None
        """When connecting failed; None while it works."""
        self.next_knock = 0.0
        self.knocks = 0
        self.knocking: asyncio.Task[None] | None = None
        self.queued: float | None = None

    def status(self) -> ServerStatus:
        """Return how the server is doing."""
        down = self.down_since is not None
        return ServerStatus(self.endpoint.base_url, self.in_flight, self.limit.value, self.queued, down)


class EndpointPool:
    """Hands out places in flight: the least loaded server first, none that is down or asked for a pause."""

    def __init__(self, endpoints: Sequence[Endpoint], load: Load) -> None:
        assert endpoints
        self.states = [
            EndpointState(endpoint, Limit(load.most_in_flight, adaptive=load.adaptive))
            for endpoint in endpoints
        ]
        self.in_flight = 0
        self.last_contact = time.monotonic()
        self.last_error = ""
        self.on_room: Callable[[], None] = lambda: None
        """Called when more requests could be in flight than before."""
        self._load = load
        self._requests = RateCap(load.requests_per_minute) if load.requests_per_minute else None
        self._tokens = RateCap(load.tokens_per_minute) if load.tokens_per_minute else None
        self._estimate = TokenEstimate(load.longest_answer)
        self._waiting: deque[_Waiter] = deque()
        self._waiting_again: deque[_Waiter] = deque()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def limit(self) -> int:
        """How many requests may be in flight now."""
        return min(self._load.most_in_flight, sum(state.limit.value for state in self.states))

    @property
    def room(self) -> int:
        """How many more requests could be sent now, if anybody had one."""
        return 0 if self._waiting or self._waiting_again else self.limit - self.in_flight

    async def acquire(self, prompt_bytes: int, *, again: bool = False) -> EndpointState:
        """Wait for a place in flight, to be given back by `release`; who asks `again` goes first."""
        if not self._waiting and (again or not self._waiting_again):
            state = self._take(prompt_bytes)
            if state is not None:
                return state
        waiter: asyncio.Future[EndpointState] = asyncio.get_running_loop().create_future()
        (self._waiting_again if again else self._waiting).append((waiter, prompt_bytes))
        self._hand_out()
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self.release(waiter.result())
            raise

    def release(self, state: EndpointState) -> None:
        """Give a place back."""
        state.in_flight -= 1
        self.in_flight -= 1
        if self._waiting or self._waiting_again:
            self._hand_out()

    def answered(self, state: EndpointState) -> None:
        """Note that the server said something, if only an error."""
        self.last_contact = time.monotonic()
        if state.down_since is not None:
            self._up(state)

    def finished(
        self, state: EndpointState, started: float, prompt_bytes: int, tokens: tuple[int, int]
    ) -> None:
        """Note an answer, and how many tokens its prompt and itself had."""
        state.limit.finished(started, tokens[1])
        if self._tokens is not None:
            self._tokens.spend(sum(tokens) - self._estimate.of(prompt_bytes))
            self._estimate.learn(prompt_bytes, *tokens)

    def refused(self, state: EndpointState, started: float, retry_after: float | None) -> None:
        """Note that the server is too busy; nobody bothers it before it wants to be asked again."""
        state.limit.refused(started)
        if retry_after:
            # not all clients of a server should come back in the same moment
            pause = retry_after * random.uniform(1.0, 1.1)
            state.paused_until = max(state.paused_until, time.monotonic() + pause)

    def down(self, state: EndpointState, error: str) -> None:
        """Note that no connection came about: the others take over until somebody answers the door."""
        self.last_error = error
        if state.down_since is not None:
            return
        now = time.monotonic()
        state.down_since, state.next_knock, state.knocks = now, now + _TICK_S, 0
        state.limit.lost()
        _log.warning("%s cannot be reached; its requests wait, or go to others.", state.endpoint.base_url)

    def silent_for(self) -> float:
        """Return for how many seconds no server has answered."""
        return time.monotonic() - self.last_contact

    async def keep(self) -> None:
        """Follow what the servers can take, until cancelled.

        Raises:
            RunStoppedError: no server can be reached, and that for long.
        """
        try:
            while True:
                await asyncio.sleep(_TICK_S)
                before = self.limit
                now = time.monotonic()
                for state in self.states:
                    if state.down_since is None:
                        state.limit.tick(state.in_flight)
                    elif state.next_knock <= now and (state.knocking is None or state.knocking.done()):
                        state.next_knock = now + _KNOCK_S
                        state.knocking = asyncio.create_task(self._knock(state))
                self._stop_if_hopeless(now)
                self._hand_out()
                if self.limit > before:
                    self.on_room()
        finally:
            for state in self.states:
                if state.knocking is not None:
                    state.knocking.cancel()

    async def _knock(self, state: EndpointState) -> None:
        """Connect to a server that was down."""
        state.knocks += 1
        url = urlsplit(state.endpoint.base_url)
        if state.endpoint.proxy:
            # whether the server is there shows only when a request goes through
            if state.knocks % _PROXY_KNOCKS == 0:
                self._up(state)
            return
        port = url.port or (443 if url.scheme == "https" else 80)
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(_KNOCK_TIMEOUT_S):
                _, writer = await asyncio.open_connection(url.hostname, port)
            writer.close()
            self._up(state)

    def _up(self, state: EndpointState) -> None:
        if state.down_since is not None:
            _log.info("%s is back.", state.endpoint.base_url)
        state.down_since = None
        self._hand_out()

    def _stop_if_hopeless(self, now: float) -> None:
        pause = min(state.paused_until for state in self.states) - now
        if pause > self._load.longest_pause_s:
            raise RunStoppedError(
                f"The server asks for a pause of {pause:.0f} s, longer than server.retry_budget_s. {_KEPT}"
            )
        since = [state.down_since for state in self.states]
        if None in since or now - max(s for s in since if s is not None) < self._load.outage_s:
            return
        raise RunStoppedError(
            f"No server has answered for {self.silent_for():.0f} s; last error: {self.last_error}. {_KEPT}"
        )

    def _take(self, prompt_bytes: int) -> EndpointState | None:
        """Take a place if there is one; otherwise make sure that somebody looks again in time."""
        now = time.monotonic()
        best: EndpointState | None = None
        for state in self.states:
            if state.in_flight >= state.limit.value or state.down_since is not None:
                continue
            if state.paused_until > now:
                self._look_again(state.paused_until - now)
            elif best is None or state.in_flight < best.in_flight:
                best = state
        if best is None or self.in_flight >= self._load.most_in_flight:
            return None
        if (self._requests or self._tokens) and not self._afford(prompt_bytes):
            return None
        best.in_flight += 1
        self.in_flight += 1
        return best

    def _afford(self, prompt_bytes: int) -> bool:
        """Pay for a request out of the caps per minute."""
        wait = max(cap.wait() for cap in (self._requests, self._tokens) if cap is not None)
        if wait > 0:
            self._look_again(wait)
            return False
        if self._requests is not None:
            self._requests.spend(1)
        if self._tokens is not None:
            self._tokens.spend(self._estimate.of(prompt_bytes))
        return True

    def _hand_out(self) -> None:
        while queue := self._waiting_again or self._waiting:
            waiter, prompt_bytes = queue[0]
            if not waiter.cancelled():
                state = self._take(prompt_bytes)
                if state is None:
                    return
                waiter.set_result(state)
            queue.popleft()

    def _look_again(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        if self._timer is not None and not self._timer.cancelled() and self._timer.when() > loop.time():
            if self._timer.when() <= loop.time() + seconds:
                return
            self._timer.cancel()
        self._timer = loop.call_later(seconds, self._hand_out)
