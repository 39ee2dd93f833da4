"""Hands answers out to workers, watches the clock of each, and returns grades in order."""

import os
import selectors
import time
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field, replace
from typing import Self

from nemo_skills.core.errors import UserError
from nemo_skills.evaluation.graders import GraderSpec
from nemo_skills.evaluation.pool._crew import Crew, Task, Worker
from nemo_skills.evaluation.pool._window import Graded, Item, Window
from nemo_skills.evaluation.verdicts import Grade, Verdict

_BATCH_S = 0.05
_LARGEST_BATCH = 256
# batches at a worker: one to work on, one so that it need not wait for the next
_AHEAD = 2
_ATTEMPTS = 2
_LONGER = 10.0
# a process that was just started has yet to make its memory its own
_SETTLES_IN = 2.0
# of the time limit and of the time since the start: how long rounds after the first may be in vain
_IN_VAIN = (0.25, 0.05)
_SHORTEST_WAIT_S = 0.001


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What grading may take."""

    timeout_s: float
    """For one answer, from the moment when a process begins it."""
    soft_timeout_s: float | None = None
    """Answers that take longer are put off until all others are done, then begun anew with ten times as
    much, then with `timeout_s`. What is left is given up when answers that used up their time in these later
    rounds have taken a quarter of `timeout_s`, or a twentieth of the time since the start, on every
    processor. All this is processor time. None: there is but one round, and the clock on the wall counts."""
    processes: int = 0
    """0: as many as there are processors."""
    memory_mb: int = 2048
    """For one process; 0 is no limit."""

    @property
    def rounds(self) -> tuple[float, ...]:
        """The time limit of each round."""
        soft = self.soft_timeout_s
        longer = () if soft is None else (soft, _LONGER * soft)
        return (*(limit for limit in longer if limit < self.timeout_s), self.timeout_s)

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
        window = Window(items)
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
        self._crew = Crew(spec, limits.workers, limits.memory_mb << 20)
        self._limits = limits
        self._window = Window([])
        self._since = time.monotonic()
        self._in_vain = 0.0
        self._pace = _Pace()
        self._stillborn = 0
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._crew.control, selectors.EVENT_READ)
        for slot in range(limits.workers):
            self._crew.ask_for(slot)

    def close(self) -> None:
        """End the workers."""
        for worker in self._workers():
            worker.channel.close()
        self._selector.close()
        self._crew.close()

    def step(self, window: Window) -> None:
        """Wait until something happens, and see to it."""
        if window is not self._window:
            self._window, self._since, self._in_vain = window, time.monotonic(), 0.0
        for worker in self._workers():
            self._supply(worker)
        if window.ready:  # some were given up
            return
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
        return max(min(self._limit(worker) - self._age(worker) for worker in busy), _SHORTEST_WAIT_S)

    def _age(self, worker: Worker) -> float:
        return worker.age(computing=self._limits.soft_timeout_s is not None)

    def _limit(self, worker: Worker) -> float:
        """Return how long the answer that a worker is at may take."""
        at = worker.in_work()
        number = 0 if at is None else worker.tasks[at].round
        limit = self._limits.rounds[number]
        is_new = not worker.graded and not number and len(self._limits.rounds) > 1
        return min(limit * _SETTLES_IN, self._limits.timeout_s) if is_new else limit

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

    def _supply(self, worker: Worker) -> None:
        batch = self._pace.batch
        # a slow answer comes alone: what waited behind it could not be given up in time
        slow = bool(worker.tasks) and worker.tasks[-1].round > 0
        ready = not (worker.killed or worker.wants_to_send or slow)
        if ready and len(worker.tasks) <= (_AHEAD - 1) * batch:
            tasks = self._take(batch)
            if tasks:
                worker.send(tasks)
        write = selectors.EVENT_WRITE if worker.wants_to_send else 0
        self._selector.modify(worker.channel, selectors.EVENT_READ | write, worker)

    def _check_clock(self, worker: Worker) -> None:
        progress = worker.progress
        if worker.killed or not progress.since or self._age(worker) < self._limit(worker):
            return
        # it may have been writing the board just then
        time.sleep(_SHORTEST_WAIT_S)
        if worker.progress == progress:
            worker.kill()

    def _take(self, batch: int) -> list[Task]:
        """Return answers to grade; those of a round that was in vain for too long are given up."""
        while True:
            tasks = self._window.take(batch)
            if not tasks and self._window.next_round():
                continue
            if not tasks or not tasks[0].round or self._in_vain < self._most_in_vain():
                return tasks
            for task in tasks:
                self._give_up(task, task.round - 1, "; too many others did for a longer try")

    def _most_in_vain(self) -> float:
        of_limit, of_all = _IN_VAIN
        passed = time.monotonic() - self._since
        return max(of_limit * self._limits.timeout_s, of_all * passed) * self._limits.workers

    def _bury(self, worker: Worker) -> None:
        """See to the answers of a dead worker, and ask for another."""
        self._selector.unregister(worker.channel)
        worker.channel.close()
        at = worker.in_work()
        tasks = list(worker.tasks)
        if at is not None:
            self._judge(tasks.pop(at), worker.killed)
        self._window.give_back(tasks)
        if not worker.graded and at is None:
            self._stillborn += 1
            if self._stillborn > _ATTEMPTS * self._limits.workers:
                raise UserError("Grading processes die as soon as they start.", exit_code=1)
        self._crew.ask_for(worker.slot)

    def _judge(self, task: Task, killed: bool) -> None:
        rounds = self._limits.rounds
        if killed and task.round:
            self._in_vain += rounds[task.round]
        if killed and task.round + 1 < len(rounds):
            self._window.put_off(replace(task, round=task.round + 1))
        elif killed:
            self._give_up(task, task.round)
        elif task.attempts + 1 < _ATTEMPTS:
            self._window.give_back([replace(task, attempts=task.attempts + 1)])
        else:
            why = {"error": f"{_ATTEMPTS} grading processes died over this answer"}
            self._window.settle(task, Grade(verdict=Verdict.grader_error, details=why))

    def _give_up(self, task: Task, last_round: int, more: str = "") -> None:
        why = {"error": f"grading took more than {self._limits.rounds[last_round]:g} s{more}"}
        self._window.settle(task, Grade(verdict=Verdict.timed_out, details=why))
