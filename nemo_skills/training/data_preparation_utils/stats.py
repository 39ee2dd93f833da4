"""What happened to the rows at each step; the parts that several processes count add up."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import nsmallest
from typing import Any, NamedTuple

from nemo_skills.training.data_preparation_utils.base import Row

_EXAMPLES = 3
_LONGEST_SHOWN = 300
_FINE = 4


class Example(NamedTuple):
    """A row that was dropped."""

    order: int
    row: Row


@dataclass(kw_only=True)
class StepStats:
    """Counts of one step: `rows_in + created == rows_out + merged + dropped` always holds."""

    name: str
    rows_in: int = 0
    rows_out: int = 0
    created: int = 0
    """Rows that the step has added."""
    merged: int = 0
    """Rows that became part of new ones."""
    dropped: Counter[str] = field(default_factory=Counter)
    """How many rows were dropped, by reason."""
    examples: dict[str, list[Example]] = field(default_factory=dict)
    """The first few of them."""

    def drop(self, reason: str, order: int, row: Row) -> None:
        """Count a row that is dropped."""
        self.dropped[reason] += 1
        kept = self.examples.setdefault(reason, [])
        if len(kept) < _EXAMPLES or order < kept[-1].order:
            kept.append(Example(order, {key: _shortened(value) for key, value in row.items()}))
            kept.sort(key=lambda example: example.order)
            del kept[_EXAMPLES:]

    def add(self, other: "StepStats") -> None:
        """Add what another process has counted."""
        self.rows_in += other.rows_in
        self.rows_out += other.rows_out
        self.created += other.created
        self.merged += other.merged
        self.dropped.update(other.dropped)
        for reason, examples in other.examples.items():
            both = [*self.examples.get(reason, ()), *examples]
            self.examples[reason] = nsmallest(_EXAMPLES, both, key=lambda example: example.order)

    def balanced(self) -> bool:
        """Whether every row is accounted for."""
        return self.rows_in + self.created == self.rows_out + self.merged + self.dropped.total()


def _shortened(value: Any) -> Any:
    if isinstance(value, str):
        return value if len(value) <= _LONGEST_SHOWN else f"{value[:_LONGEST_SHOWN]}…"
    text = str(value)
    return value if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"


@dataclass(kw_only=True)
class Histogram:
    """Lengths, in bins that grow by a quarter of an octave."""

    bins: Counter[int] = field(default_factory=Counter)
    count: int = 0
    total: int = 0
    longest: int = 0

    def note(self, lengths: Sequence[int]) -> None:
        """Count lengths."""
        for length, count in Counter(lengths).items():
            self.bins[_bin(length)] += count
        self.count += len(lengths)
        self.total += sum(lengths)
        longest = max(lengths)
        self.longest = max(self.longest, longest)

    def add(self, other: "Histogram") -> None:
        """Add what another process has counted."""
        self.bins.update(other.bins)
        self.count += other.count
        self.total += other.total
        self.longest = max(self.longest, other.longest)

    def as_json(self) -> dict[str, Any]:
        """Return mean, longest, and `[first length of the bin, rows]` for every bin up to the last one."""
        last = max(self.bins, default=-1)
        return {
            "mean": round(self.total / self.count, 1) if self.count else 0,
            "longest": self.longest,
            "bins": [[_first(number), self.bins[number]] for number in range(last + 1)],
        }


def _bin(length: int) -> int:
    """Return 0 to 7 for themselves, then four bins for each power of two."""
    if length < 2 * _FINE:
        return length
    power = length.bit_length() - _FINE.bit_length()
    return power * _FINE + (length >> power)


def _first(number: int) -> int:
    """Return the shortest length that falls into a bin."""
    if number < 2 * _FINE:
        return number
    power = number // _FINE - 1
    return (number - power * _FINE) << power


@dataclass(kw_only=True)
class Tally:
    """Everything that is counted."""

    steps: list[StepStats]
    lengths: dict[str, Histogram] = field(default_factory=dict)
    smallest: set[int] = field(default_factory=set)
    """The smallest numbers that a split has given to problems, `wanted` of them."""
    wanted: int = 0

    def note_lengths(self, what: str, lengths: Sequence[int]) -> None:
        """Count the lengths of something in the output."""
        if lengths:
            self.lengths.setdefault(what, Histogram()).note(lengths)

    def add(self, other: "Tally") -> None:
        """Add what another process has counted."""
        for own, theirs in zip(self.steps, other.steps, strict=True):
            own.add(theirs)
        for what, lengths in other.lengths.items():
            self.lengths.setdefault(what, Histogram()).add(lengths)
        for number in other.smallest:
            self.note_number(number)

    def note_number(self, number: int) -> None:
        """Take note of the number that a split has given to a problem."""
        self.smallest.add(number)
        if len(self.smallest) > 2 * self.wanted + _EXAMPLES:
            self.smallest = set(nsmallest(self.wanted, self.smallest))
