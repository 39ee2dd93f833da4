"""The concurrency limit against simulated servers, and the caps per minute."""

import heapq
import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_skills.inference.limit import START, Limit
from nemo_skills.inference.ratecap import RateCap, TokenEstimate

TICK = 0.1


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Server:
    """A server in simulated time: works on some requests at once, refuses or queues what is beyond."""

    slots: int = 10**6
    refuses_beyond: int = 10**6
    seconds: Callable[[], float] = lambda: 1.0
    has_metrics: bool = False
    retry_after: float = 1.0
    clock: Clock = field(default_factory=Clock)
    cap: int = 512

    def __post_init__(self) -> None:
        self.limit = Limit(self.cap, clock=self.clock)
        self.finished = 0
        self.refused = 0
        self.levels: list[int] = []
        self._running: list[tuple[float, float]] = []
        self._waiting: list[float] = []
        self._paused_until = 0.0

    @property
    def in_flight(self) -> int:
        return len(self._running) + len(self._waiting)

    def run(self, seconds: float) -> None:
        end, next_tick, next_poll = self.clock.now + seconds, self.clock.now + TICK, self.clock.now + 1
        while self.clock.now < end:
            self._fill()
            upcoming = min(next_tick, next_poll)
            if self._running and self._running[0][0] <= upcoming:
                self.clock.now, started = heapq.heappop(self._running)
                self.finished += 1
                self.limit.finished(started, 100)
                continue
            self.clock.now = upcoming
            if upcoming == next_tick:
                self.limit.tick(self.in_flight)
                next_tick += TICK
            else:
                if self.has_metrics:
                    self.limit.queue(len(self._running), len(self._waiting), self.in_flight)
                self.levels.append(self.limit.value)
                next_poll += 1

    def _fill(self) -> None:
        while self._waiting and len(self._running) < self.slots:
            self._start(self._waiting.pop(0))
        while self.in_flight < self.limit.value and self.clock.now >= self._paused_until:
            if self.in_flight >= self.refuses_beyond:
                # all that were sent at once are refused together
                for _ in range(self.limit.value - self.in_flight):
                    self.refused += 1
                    self.limit.refused(self.clock.now)
                self._paused_until = self.clock.now + self.retry_after
            elif len(self._running) < self.slots:
                self._start(self.clock.now)
            else:
                self._waiting.append(self.clock.now)

    def _start(self, sent: float) -> None:
        heapq.heappush(self._running, (self.clock.now + self.seconds(), sent))


def around(mean: float) -> Callable[[], float]:
    dice = random.Random(0)
    return lambda: dice.uniform(0.3, 1.7) * mean


@pytest.mark.parametrize("seconds", [0.05, 1.0, 60.0])
def test_a_server_that_gets_faster_soon_gets_all(seconds: float) -> None:
    server = Server(seconds=around(seconds))
    server.run(2.0 + 8 * min(seconds, 1.0))
    assert server.limit.value == 512
    server.run(20 * seconds)
    assert server.limit.value >= 400


@pytest.mark.parametrize("slots", [20, 32, 100, 300])
@pytest.mark.parametrize("seconds", [0.1, 0.5])
def test_a_server_with_few_slots_is_kept_busy_but_not_flooded(slots: int, seconds: float) -> None:
    server = Server(slots=slots, seconds=around(seconds))
    server.run(20)
    before = server.finished
    server.run(200)
    assert server.finished - before >= 0.95 * slots * 200 / seconds
    assert 0.9 * slots <= statistics.median(server.levels[100:]) <= 4.2 * slots


def test_a_server_that_tells_its_queue_is_not_flooded() -> None:
    server = Server(slots=64, seconds=around(20.0), has_metrics=True)
    server.run(400)
    assert 64 <= server.limit.value <= 128
    before = server.finished
    server.run(200)
    assert server.finished - before >= 0.97 * 64 * 200 / 20


def test_a_server_without_a_queue_gets_all_though_its_speed_wavers() -> None:
    server = Server(has_metrics=True, seconds=lambda: server.in_flight / 50)
    server.run(30)
    assert server.limit.value == 512, "no faster, but nothing waits"
    server = Server(seconds=lambda: server.in_flight / 50)
    server.run(30)
    assert server.limit.value < 200


def test_a_server_that_refuses_gets_what_it_takes() -> None:
    server = Server(refuses_beyond=40, seconds=around(0.5))
    server.run(60)
    assert 36 <= statistics.median(server.levels) <= 40
    refused, finished = server.refused, server.finished
    server.run(240)
    assert server.refused - refused < 100
    assert server.finished - finished > 0.85 * 40 * 240 / 0.5


def test_refusals_of_everything_end_at_one_and_are_forgotten_when_they_stop() -> None:
    server = Server(seconds=around(0.2))
    server.run(10)
    server.refuses_beyond = 0
    server.run(30)
    assert server.limit.value == 1
    server.refuses_beyond = 10**6
    server.run(120)
    assert server.limit.value >= 100


def test_overdue_answers_shrink_it_once_for_each_round() -> None:
    clock = Clock()
    limit = Limit(100, clock=clock)
    clock.now += 10
    sent = clock.now - 1
    for _ in range(5):
        limit.overdue(sent)
    assert limit.value == 11
    limit.overdue(clock.now + 1)
    assert limit.value == 7


def test_after_an_outage_it_is_soon_as_high_as_before() -> None:
    server = Server(seconds=around(1.0))
    server.run(10)
    server.limit.lost()
    assert server.limit.value <= START
    server.run(15)
    assert server.limit.value == 512


def test_it_can_be_fixed() -> None:
    limit = Limit(77, adaptive=False)
    for _ in range(5):
        limit.refused(1e12)
        limit.overdue(1e12)
        limit.lost()
        limit.queue(1, 1000, 77)
        limit.tick(77)
    assert limit.value == 77


def test_an_idle_client_does_not_raise_it() -> None:
    clock = Clock()
    limit = Limit(512, clock=clock)
    for _ in range(100):
        clock.now += TICK
        limit.tick(3)
    assert limit.value == START


@given(
    st.floats(1, 10_000),
    st.lists(st.tuples(st.floats(0, 3), st.integers(1, 50)), min_size=1, max_size=200),
)
def test_no_minute_has_more_than_the_cap(per_minute: float, wishes: list[tuple[float, int]]) -> None:
    clock = Clock()
    cap = RateCap(per_minute, clock)
    sent: list[tuple[float, int]] = []
    for pause, units in wishes:
        clock.now += pause
        clock.now += cap.wait() + 1e-9
        cap.spend(units)
        sent.append((clock.now, units))
    for start, _ in sent:
        within = [units for moment, units in sent if start <= moment < start + 60]
        # one request may go beyond: nobody knows beforehand how long its answer gets
        assert sum(within[:-1]) <= per_minute * 1.001


def test_the_cap_is_used_up() -> None:
    clock = Clock()
    cap = RateCap(600, clock)
    sent = 0
    while clock.now < 160:
        clock.now += cap.wait() + 1e-6
        cap.spend(1)
        sent += 1
    assert 580 <= sent <= 601
    cap.spend(1000)
    assert cap.wait() > 90
    cap.spend(-1000)
    assert cap.wait() < 1


def test_token_estimates_follow_the_answers() -> None:
    estimate = TokenEstimate(longest_answer=2048)
    assert estimate.of(400) == pytest.approx(2148)
    for _ in range(100):
        estimate.learn(400, 200, 30)
    assert estimate.of(400) == pytest.approx(230, rel=0.05)
