"""Which rows are finished: a byte for each, and four more for each that was there at the start."""

from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from nemo_skills.core.jsonl._records import HEADER_PLACES, POSITION_LIMIT

_BITS = 16
_PAGE = 1 << _BITS
_ABSENT, _FOUND, _DONE, _OTHER = range(4)
"""No record; one not compared with the input yet; one that answers the input's row, or another text."""


class Match(NamedTuple):
    """How a stretch of the input compares with the records."""

    todo: Sequence[int]
    """Which of its rows are not finished."""
    edited: Sequence[int]
    """Which of these have a record that answers another text."""


class _Page:
    """Neighbouring positions; a run on a late part of the input needs no memory for the earlier ones."""

    __slots__ = ("checks", "state")

    def __init__(self) -> None:
        self.state = bytearray(_PAGE)
        self.checks: array[int] | None = None

    def known(self) -> "array[int]":
        if self.checks is None:
            self.checks = array("I", bytes(4 * _PAGE))
        return self.checks


class RowIndex:
    """The state of every row, and the checksums of the texts that recorded rows answer."""

    def __init__(self) -> None:
        self._pages: dict[int, _Page] = {}
        self.rows = 0
        """How many records there are."""
        self.done = 0
        """How many rows of the input are finished, as far as it was compared."""

    @property
    def found(self) -> int:
        """How many positions have a record that was not compared with the input yet."""
        return sum(page.state.count(_FOUND) for page in self._pages.values())

    @property
    def first(self) -> int:
        """A position before which no row is finished."""
        return min((n for n, page in self._pages.items() if _DONE in page.state), default=0) << _BITS

    def load(self, headers: bytes, other: Callable[[int], None]) -> None:
        """Take note of records in a file; call `other` with the numbers of those that are no rows."""
        others = 0
        number, state, checks = -1, bytearray(), array("I")
        for index, (position, check) in enumerate(HEADER_PLACES.iter_unpack(headers)):
            if position >> _BITS != number:
                if position >= POSITION_LIMIT:
                    others += 1
                    other(index)
                    continue
                number = position >> _BITS
                page = self._page(number)
                state, checks = page.state, page.known()
            place = position & (_PAGE - 1)
            state[place] = _FOUND
            checks[place] = check
        self.rows += len(headers) // HEADER_PLACES.size - others

    def find(self, position: int, check: int) -> None:
        """Take note of one record in a file."""
        page, place = self._place(position)
        page.state[place] = _FOUND
        page.known()[place] = check
        self.rows += 1

    def drop(self, position: int) -> None:
        """Forget that there is a record for this position."""
        page, place = self._place(position)
        page.state[place] = _ABSENT

    def stale(self) -> Iterator[int]:
        """Yield the positions whose record answers no row of the input, which was compared as a whole."""
        for number, page in sorted(self._pages.items()):
            for state in (_FOUND, _OTHER):
                place = page.state.find(state)
                while place >= 0:
                    yield (number << _BITS) + place
                    place = page.state.find(state, place + 1)

    def finish(self, position: int, check: int | None = None) -> None:
        """Take note of a row that is finished now; its checksum matters if it will be compared again."""
        page, place = self._place(position)
        self.rows += 1
        self.done += page.state[place] != _DONE
        page.state[place] = _DONE
        if check is not None:
            page.known()[place] = check

    def is_done(self, position: int) -> bool:
        """Whether a row that `match` has seen is finished."""
        page = self._pages.get(position >> _BITS)
        return page is not None and page.state[position & (_PAGE - 1)] == _DONE

    def match(self, start: int, checks: "array[int]") -> Match:
        """Compare the rows of the input from `start` on, which have these checksums, with the records."""
        todo: list[int] = []
        edited: list[int] = []
        at = 0
        while at < len(checks):
            place = (start + at) & (_PAGE - 1)
            part = checks[at : at + _PAGE - place]
            page = self._pages.get((start + at) >> _BITS)
            if page is None or page.state.count(_ABSENT, place, place + len(part)) == len(part):
                todo += range(at, at + len(part))
            elif not self._all_match(page, place, part):
                left, other = self._match_each(page, place, part)
                todo += [at + index for index in left]
                edited += [at + index for index in other]
            at += len(part)
        return Match(todo, edited)

    def _all_match(self, page: _Page, start: int, checks: "array[int]") -> bool:
        """Settle the common case at the speed of memory."""
        stop = start + len(checks)
        state = page.state[start:stop]
        found = state.count(_FOUND)
        if found + state.count(_DONE) < len(state) or page.known()[start:stop] != checks:
            return False
        page.state[start:stop] = bytes([_DONE]) * len(state)
        self.done += found
        return True

    def _match_each(self, page: _Page, start: int, checks: "array[int]") -> Match:
        todo, edited, state, known = [], [], page.state, page.known()
        for index, check in enumerate(checks):
            place = start + index
            was = state[place]
            if was == _ABSENT:
                todo.append(index)
            elif known[place] != check:
                self.done -= was == _DONE
                state[place] = _OTHER
                todo.append(index)
                edited.append(index)
            elif was != _DONE:
                self.done += 1
                state[place] = _DONE
        return Match(todo, edited)

    def _page(self, number: int) -> _Page:
        page = self._pages.get(number)
        if page is None:
            page = self._pages[number] = _Page()
        return page

    def _place(self, position: int) -> tuple[_Page, int]:
        return self._page(position >> _BITS), position & (_PAGE - 1)
