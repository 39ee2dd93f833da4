"""Running one step over some rows, and counting what it does with them."""

import functools
import itertools
import traceback
from collections.abc import Iterator
from operator import attrgetter
from typing import NamedTuple

import orjson

from nemo_skills.core.errors import UserError
from nemo_skills.training.data_preparation_utils.base import (
    HASH_LIMIT,
    DropRow,
    GroupFilter,
    GroupMap,
    Processor,
    Row,
    RowFilter,
    RowMap,
)
from nemo_skills.training.data_preparation_utils.order import Split
from nemo_skills.training.data_preparation_utils.stats import StepStats, Tally

CHILDREN = 1 << 16
"""A row's order is its position in the input times this: there is room for rows that are made from it."""
_NO_SPLIT = HASH_LIMIT - 1


class Item:
    """A row on its way through the steps."""

    __slots__ = ("group", "order", "raw", "row", "split")

    def __init__(
        self, order: int, row: Row, raw: bytes | None, split: int = _NO_SPLIT, group: bytes = b""
    ) -> None:
        self.order = order
        self.row = row
        self.raw = raw
        """The row's text, as long as nothing has changed it."""
        self.split = split
        self.group = group
        """What rows of the same group have in common; they stand next to each other."""

    def text(self) -> bytes:
        """Return the row as JSON."""
        return orjson.dumps(self.row) if self.raw is None else self.raw

    def child(self, number: int, row: Row) -> "Item":
        """Return a row that was made from this one."""
        return Item(self.order + number, row, None, self.split, self.group)


class Step(NamedTuple):
    """A processor and its place in the list, where 0 is the reading of the input."""

    number: int
    name: str
    processor: Processor


class RowProblemError(UserError):
    """A processor cannot deal with a row."""

    def __init__(self, message: str, step: str = "", order: int = 0) -> None:
        super().__init__(message)
        self.step = step
        self.position = order // CHILDREN


def run_step(step: Step, tally: Tally, items: list[Item]) -> list[Item]:
    """Return the rows that a step leaves.

    Raises:
        RowProblemError: the step cannot deal with a row.
    """
    counting = _Counting(tally, tally.steps[step.number], items[0].order)
    counting.stats.rows_in += len(items)
    try:
        left = _run(step.processor, items, counting)
    except UserError as error:
        raise RowProblemError(str(error), step.name, counting.order) from None
    except Exception as error:
        place = f"processor {step.name}, row at position {counting.order // CHILDREN} of the input"
        error.add_note(f"{place}\n{traceback.format_exc()}")
        raise
    counting.stats.rows_out += len(left)
    return left


class _Counting:
    """Where counts go, and which row is being looked at, for messages."""

    __slots__ = ("order", "stats", "tally")

    def __init__(self, tally: Tally, stats: StepStats, order: int) -> None:
        self.tally = tally
        self.stats = stats
        self.order = order


@functools.singledispatch
def _run(_processor: Processor, items: list[Item], _counting: _Counting) -> list[Item]:
    """Do nothing with rows that the step says nothing about."""
    return items


@_run.register
def _filter_rows(processor: RowFilter, items: list[Item], counting: _Counting) -> list[Item]:
    kept, reject = [], processor.reject
    for item in items:
        counting.order = item.order
        reason = reject(item.row)
        if reason is None:
            kept.append(item)
        else:
            counting.stats.drop(reason, item.order, item.row)
    return kept


@_run.register
def _map_rows(processor: RowMap, items: list[Item], counting: _Counting) -> list[Item]:
    kept = []
    for item in items:
        counting.order = item.order
        try:
            changed = processor.change(item.row)
        except DropRow as why:
            counting.stats.drop(str(why), item.order, item.row)
            continue
        if isinstance(changed, list):
            counting.stats.created += len(changed) - 1
            kept += [item.child(i, row) for i, row in enumerate(changed)]
        else:
            kept.append(item if changed is None else item.child(0, changed))
    return kept


@_run.register
def _filter_groups(processor: GroupFilter, items: list[Item], counting: _Counting) -> list[Item]:
    kept: list[Item] = []
    for group in _groups(items, counting):
        reasons = processor.reject([item.row for item in group])
        for item, reason in zip(group, reasons, strict=True):
            if reason is None:
                kept.append(item)
            else:
                counting.stats.drop(reason, item.order, item.row)
    return kept


@_run.register
def _map_groups(processor: GroupMap, items: list[Item], counting: _Counting) -> list[Item]:
    made: list[Item] = []
    for group in _groups(items, counting):
        rows, fates = processor.combine([item.row for item in group])
        for item, reason in zip(group, fates, strict=True):
            if reason is not None:
                counting.stats.drop(reason, item.order, item.row)
        counting.stats.merged += sum(reason is None for reason in fates)
        counting.stats.created += len(rows)
        made += [group[0].child(i, row) for i, row in enumerate(rows)]
    return made


def _groups(items: list[Item], counting: _Counting) -> Iterator[list[Item]]:
    for _, members in itertools.groupby(items, attrgetter("group")):
        group = list(members)
        counting.order = group[0].order
        yield group


@_run.register
def _number_rows(processor: Split, items: list[Item], counting: _Counting) -> list[Item]:
    tally = counting.tally
    tally.wanted = processor.problems
    last, number = None, 0
    for item in items:
        counting.order = item.order
        text = processor.problem(item.row)
        if text != last:
            last, number = text, processor.number(text)
            if tally.wanted:
                tally.note_number(number)
        item.split = number
    return items
