"""Hands answers out to workers, watches the clock of each, and returns grades in order."""

import os
import selectors
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Self

from nemo_skills.core.errors import UserError
from nemo_skills.evaluation.graders import GraderSpec
from nemo_skills.evaluation.pool._crew import Crew, Task, Worker
from nemo_skills.evaluation.verdicts import Grade, Verdict

_BATCH_S = 0.05
_LARGEST_BATCH = 256
_BATCH_BYTES = 1 << 20
# batches at a worker: one to work on, one so that it need not wait for the next
_AHEAD = 2
# answers that may be read before the first of them is done, so that one that hangs holds nobody up
_WINDOW_ROWS = 20_000
_WINDOW_BYTES = 64 << 20
_ATTEMPTS = 2
# answers that may go on in the background
_ASIDE = 32
_SHORTEST_WAIT_S = 0.001


class Item(NamedTuple):
    """A row, and whether to grade it or to pass it through in its place."""

    raw: bytes
    """Text of a JSON object."""
    grade: bool = True


class Graded(NamedTuple):
    """A row and its grade, None for one that was passed through."""

    item: Item
    grade: Grade | None


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What grading may take."""

    timeout_s: float
    """For one answer, from the moment when a process begins it."""
    soft_timeout_s: float | None = None
    """After so long an answer goes on in the background, and another process takes over; None is never."""
    processes: int = 0
    """0: as many as there are processors."""
    memory_mb: int = 2048
    """For one process; 0 is no limit."""

    @property
    def workers(self) -> int:
        """How many processes grade."""
        return self.processes or len(os.sched_getaffinity(0))


class GradingPool:
    """Grades rows in several processes.

    An answer that takes longer than allowed is `timed_out`: its process is killed and replaced, which
    disturbs no other answer. An answer over which two processes died is a `grader_error`. Processes are
    started when the first row needs them, and end when the pool is closed, or with this process, however it
    ends. Grade one sequence of rows at a time.
    """

    def __init__(self, spec: GraderSpec, limits: Limits) -> None:
        self._spec = spec
        self._limits = limits
        self._shift: _Shift | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes."""
        if self._shift is not None:
            self._shift.close()
            self._shift = None

    def grade(self, items: Iterable[Item]) -> Generator[Graded]:
        """Yield every row with its grade, in order; close the iterator to stop early.

        Raises:
            UserError: the grader cannot be made, or its processes cannot be kept alive.
        """
        window = _Window(items)
        yield from window.finished()
        if window.exhausted:
            return
        if self._shift is None:
            self._shift = _Shift(self._spec, self._limits)
        try:
            while not window.exhausted:
                self._shift.step(window)
                yield from window.finished()
        except BaseException:
            # the processes are busy with what nobody wants any more
            self.close()
            raise


@dataclass(kw_only=True)
class _Place:
    """An item in the window."""

    item: Item
    grade: Grade | None = None
    done: bool = False


class _Window:
    """The rows between the one to be yielded next and the last one read."""

    def __init__(self, items: Iterable[Item]) -> None:
        self._items = iter(items)
        self._places: deque[_Place] = deque()
        self._first = 0
        self._bytes = 0
        self._ended = False
        self._waiting: deque[Task] = deque()

    @property
    def exhausted(self) -> bool:
        """Whether all rows have been read and yielded."""
        return self._ended and not self._places

    def finished(self) -> Iterator[Graded]:
        """Yield the rows at the front that are done; read on while rows need no grading."""
        while True:
            while self._places and self._places[0].done:
                place = self._places.popleft()
                self._first += 1
                self._bytes -= len(place.item.raw)
                yield Graded(place.item, place.grade)
            if self._places or self._ended:
                return
            self._read()

    def take(self, most: int) -> list[Task]:
        """Return up to so many answers to grade."""
        tasks: list[Task] = []
        size = 0
        while len(tasks) < most and size < _BATCH_BYTES:
            while not self._waiting and self._has_room():
                self._read()
            if not self._waiting:
                break
            tasks.append(self._waiting.popleft())
            size += len(tasks[-1].raw)
        return tasks

    def give_back(self, tasks: Iterable[Task]) -> None:
        """Take answers back that were handed out in vain; they are the next to be handed out."""
        self._waiting.extendleft(reversed(list(tasks)))

    def settle(self, task: Task, grade: Grade) -> None:
        """Note the grade of an answer."""
        place = self._places[task.position - self._first]
        place.grade, place.done = grade, True

    def _has_room(self) -> bool:
        return not self._ended and len(self._places) < _WINDOW_ROWS and self._bytes < _WINDOW_BYTES

    def _read(self) -> None:
        item = next(self._items, None)
        if item is None:
            self._ended = True
            return
        if item.grade:
            self._waiting.append(Task(self._first + len(self._places), item.raw))
        self._places.append(_Place(item=item, done=not item.grade))
        self._bytes += len(item.raw)


@dataclass
class _Pace:
    """How many answers make a batch that takes about `_BATCH_S`."""

    per_answer: float = _BATCH_S
    last: float = field(default_factory=time.monotonic)

    @property
    def batch(self) -> int:
        return max(1, min(_LARGEST_BATCH, int(_BATCH_S / self.per_answer)))

    def note(self, graded: int, workers: int) -> None:
        now = time.monotonic()
        spent = (now - self.last) * workers / graded
        # one that hung says nothing about the next
        self.per_answer += 0.5 * (min(max(spent, 1e-6), _BATCH_S) - self.per_answer)
        self.last = now


class _Shift:
    """Workers at work."""

    def __init__(self, spec: GraderSpec, limits: Limits) -> None:
        slots = limits.workers + (_ASIDE if limits.soft_timeout_s is not None else 0)
        self._crew = Crew(spec, slots, limits.memory_mb << 20)
        self._limits = limits
        self._window = _Window([])
        self._free = list(range(slots))
        self._pace = _Pace()
        self._stillborn = 0
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._crew.control, selectors.EVENT_READ)
        for _ in range(limits.workers):
            self._crew.ask_for(self._free.pop())

    def close(self) -> None:
        """End the workers."""
        for worker in self._workers():
            worker.channel.close()
        self._selector.close()
        self._crew.close()

    def step(self, window: "_Window") -> None:
        """Wait until something happens, and see to it."""
        self._window = window
        for worker in self._workers():
            self._supply(worker)
        for key, events in self._selector.select(self._patience()):
            worker = key.data
            if worker is None:
                worker = self._crew.welcome()
                self._selector.register(worker.channel, selectors.EVENT_READ, worker)
                continue
            if events & selectors.EVENT_WRITE:
                worker.flush()
            if events & selectors.EVENT_READ:
                self._hear(worker)
        for worker in self._workers():
            self._check_clock(worker)

    def _workers(self) -> list[Worker]:
        return [key.data for key in list(self._selector.get_map().values()) if key.data is not None]

    def _patience(self) -> float | None:
        """Return how long nothing can be overdue."""
        busy = [worker for worker in self._workers() if worker.tasks and not worker.killed]
        if not busy:
            return None
        now = time.monotonic()
        left = min((worker.progress.since or now) + self._limit(worker) - now for worker in busy)
        return max(left, _SHORTEST_WAIT_S)

    def _limit(self, worker: Worker) -> float:
        """Return after how long something has to be done about the answer of a worker."""
        soft = self._limits.soft_timeout_s
        return self._limits.timeout_s if soft is None or worker.aside or not self._free else soft

    def _hear(self, worker: Worker) -> None:
        graded = worker.read()
        if graded is None:
            self._bury(worker)
            return
        for task, grade in graded:
            self._window.settle(task, grade)
        if graded:
            self._stillborn = 0
            self._pace.note(len(graded), self._limits.workers)
        if worker.aside and not worker.tasks:
            worker.kill()

    def _supply(self, worker: Worker) -> None:
        batch = self._pace.batch
        ready = not (worker.killed or worker.aside or worker.wants_to_send)
        if ready and len(worker.tasks) <= (_AHEAD - 1) * batch:
            tasks = self._window.take(batch)
            if tasks:
                worker.send(tasks)
        write = selectors.EVENT_WRITE if worker.wants_to_send else 0
        self._selector.modify(worker.channel, selectors.EVENT_READ | write, worker)

    def _check_clock(self, worker: Worker) -> None:
        progress = worker.progress
        passed = time.monotonic() - progress.since
        if worker.killed or not progress.since or passed < self._limit(worker):
            return
        # it may have been writing the board just then
        time.sleep(_SHORTEST_WAIT_S)
        at = worker.in_work()
        if worker.progress != progress or at is None:
            return
        if passed >= self._limits.timeout_s:
            worker.kill()
        else:
            self._window.give_back(worker.set_aside(at))
            self._crew.ask_for(self._free.pop())

    def _bury(self, worker: Worker) -> None:
        """See to the answers of a dead worker, and ask for another."""
        self._selector.unregister(worker.channel)
        worker.channel.close()
        self._free.append(worker.slot)
        at = worker.in_work()
        culprit = worker.tasks[at] if at is not None else None
        if culprit is not None:
            self._judge(culprit, worker.killed)
        self._window.give_back(task for task in worker.tasks if task not in (None, culprit))
        if not worker.graded and culprit is None and not worker.aside:
            self._stillborn += 1
            if self._stillborn > _ATTEMPTS * self._limits.workers:
                raise UserError("Grading processes die as soon as they start.", exit_code=1)
        if not worker.aside:
            self._crew.ask_for(self._free.pop())

    def _judge(self, task: Task, killed: bool) -> None:
        if killed:
            why = {"error": f"grading took more than {self._limits.timeout_s:g} s"}
            self._window.settle(task, Grade(verdict=Verdict.timed_out, details=why))
        elif task.attempts + 1 < _ATTEMPTS:
            self._window.give_back([Task(task.position, task.raw, task.attempts + 1)])
        else:
            why = {"error": f"{_ATTEMPTS} grading processes died over this answer"}
            self._window.settle(task, Grade(verdict=Verdict.grader_error, details=why))
