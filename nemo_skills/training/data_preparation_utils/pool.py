"""Tasks in several processes, results in the order of the tasks.

The processes are forked, so that they see all that the parent has loaded, and end when it ends, however.
"""

import functools
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from typing import Any, Generic, NamedTuple, Self, TypeVar

from nemo_skills.core.errors import UserError

T = TypeVar("T")
R = TypeVar("R")
_AHEAD = 3


def available_cpus() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_tasks(work: Callable[[T], R], tasks: Iterable[T], processes: int) -> Iterator[R]:
    """Yield `work(task)` for every task; with one process everything happens in this one.

    Raises:
        UserError: one of the processes was killed.
        Exception: whatever `work` raises.
    """
    if processes == 1:
        yield from map(work, tasks)
        return
    with _Workers(work, processes) as workers:
        yield from workers.run(tasks)


class _Failed(NamedTuple):
    error: BaseException


class _Workers(Generic[T, R]):
    def __init__(self, work: Callable[[T], R], processes: int) -> None:
        context = multiprocessing.get_context("fork")
        self._connections: list[Connection[Any, Any]] = []
        self._processes: list[ForkProcess] = []
        for _ in range(processes):
            ours, theirs = context.Pipe()
            # a child that kept the parents' ends open would never see the parent go
            inherited = [*self._connections, ours]
            process = context.Process(target=_serve, args=(work, theirs, inherited), daemon=True)
            process.start()
            theirs.close()
            self._connections.append(ours)
            self._processes.append(process)

    def run(self, tasks: Iterable[T]) -> Iterator[R]:
        idle, busy = deque(self._connections), dict[Any, int]()
        ready: dict[int, Any] = {}
        numbered, taken, given = iter(tasks), 0, 0
        exhausted = False
        while True:
            while idle and not exhausted and taken - given < _AHEAD * len(self._connections):
                try:
                    task = next(numbered)
                except StopIteration:
                    exhausted = True
                    break
                connection = idle.popleft()
                _guarded(functools.partial(connection.send, task))
                busy[connection] = taken
                taken += 1
            if not busy:
                return
            for connection in _readable(busy):
                ready[busy.pop(connection)] = _guarded(connection.recv)
                idle.append(connection)
            while given in ready:
                result = ready.pop(given)
                if isinstance(result, _Failed):
                    raise result.error
                yield result
                given += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            process.terminate()
            process.join()


def _readable(connections: Iterable["Connection[Any, Any]"]) -> list["Connection[Any, Any]"]:
    return [found for found in wait(list(connections)) if isinstance(found, Connection)]


def _guarded(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except (EOFError, OSError):
        raise UserError(
            "A worker process was killed, probably because memory ran out; try fewer with ++processes=1.",
            exit_code=1,
        ) from None


def _serve(work: Callable[[T], R], connection: "Connection[Any, Any]", inherited: list[Any]) -> None:
    """Do tasks until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for other in inherited:
        other.close()
    while True:
        try:
            task = connection.recv()
        except (EOFError, OSError):
            os._exit(0)
        result: Any
        try:
            result = work(task)
        except Exception as error:
            result = _Failed(error)
        try:
            connection.send(result)
        except OSError:
            os._exit(0)
