"""The rows that a pool has read and not yet returned."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from nemo_skills.evaluation.pool._crew import Task
from nemo_skills.evaluation.verdicts import Grade

_BATCH_BYTES = 1 << 20
# answers that may be read before the first of them is done, so that one that hangs holds nobody up
_WINDOW_ROWS = 20_000
_WINDOW_BYTES = 64 << 20


class Item(NamedTuple):
    """A row, and whether to grade it or to pass it through in its place."""

    raw: bytes
    """Text of a JSON object."""
    grade: bool = True


class Graded(NamedTuple):
    """A row and its grade, None for one that was passed through."""

    item: Item
    grade: Grade | None


@dataclass(kw_only=True)
class _Place:
    """An item in the window."""

    item: Item
    grade: Grade | None = None
    done: bool = False


class Window:
    """The rows between the one to be yielded next and the last one read."""

    def __init__(self, items: Iterable[Item]) -> None:
        self._items = iter(items)
        self._places: deque[_Place] = deque()
        self._first = 0
        self._bytes = 0
        self._ended = False
        self._waiting: deque[Task] = deque()
        self._slow: list[Task] = []

    @property
    def exhausted(self) -> bool:
        """Whether all rows have been read and yielded."""
        return self._ended and not self._places

    @property
    def ready(self) -> bool:
        """Whether the row at the front is done."""
        return bool(self._places) and self._places[0].done

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
            # slow ones are handed out one by one
            if tasks and self._waiting[0].round:
                break
            tasks.append(self._waiting.popleft())
            size += len(tasks[-1].raw)
            if tasks[-1].round:
                break
        return tasks

    def give_back(self, tasks: Iterable[Task]) -> None:
        """Take answers back that were handed out in vain; they are the next to be handed out."""
        self._waiting.extendleft(reversed(list(tasks)))

    def put_off(self, task: Task) -> None:
        """Keep an answer for the next round."""
        self._slow.append(task)

    def next_round(self) -> bool:
        """Go on with the answers that were put off, if nothing else is left; return whether there are any."""
        if self._waiting or self._has_room() or not self._slow:
            return False
        self._waiting.extend(self._slow)
        self._slow = []
        return True

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
