"""Which steps run together in a stage, and one task of it: rows of the input, or a sorted part."""

import itertools
import traceback
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

import orjson

from nemo_skills.core.errors import UserError
from nemo_skills.core.jsonl import BadRowError, Block, parse_row
from nemo_skills.training.data_preparation_utils.base import (
    HASH_LIMIT,
    DropRow,
    GroupFilter,
    GroupMap,
    GroupProcessor,
    Processor,
    Row,
    RowFilter,
    RowMap,
    key_text,
)
from nemo_skills.training.data_preparation_utils.lengths import note_lengths
from nemo_skills.training.data_preparation_utils.order import Shuffle, Split
from nemo_skills.training.data_preparation_utils.spill import HEADER, Record, Run, RunWriter, Spill
from nemo_skills.training.data_preparation_utils.stats import StepStats, Tally

CHILDREN = 1 << 16
"""A row's order is its position in the input times this: there is room for rows that are made from it."""
_NO_SPLIT = HASH_LIMIT - 1
_NO_GROUP = bytes(16)


class Item:
    """A row on its way through the steps."""

    __slots__ = ("order", "raw", "row", "split")

    def __init__(self, order: int, row: Row, raw: bytes | None, split: int = _NO_SPLIT) -> None:
        self.order = order
        self.row = row
        self.raw = raw
        """The row's text, as long as nothing has changed it."""
        self.split = split


class Step(NamedTuple):
    """A processor and its place in the list, where 0 is the reading of the input."""

    number: int
    name: str
    processor: Processor


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Steps that run without sorting the rows in between."""

    key: str | None
    """What the rows are grouped by; None for the first stage, which reads the input."""
    steps: tuple[Step, ...]


def cut_into_stages(steps: Sequence[Step]) -> list[Stage]:
    """Begin a stage wherever rows must be grouped anew."""
    stages: list[tuple[str | None, list[Step]]] = [(None, [])]
    fresh = False
    for step in steps:
        if isinstance(step.processor, GroupProcessor) and not (fresh and step.processor.key == stages[-1][0]):
            stages.append((step.processor.key, []))
            fresh = True
        if isinstance(step.processor, RowMap | GroupMap):
            fresh = False
        stages[-1][1].append(step)
    return [Stage(key=key, steps=tuple(own)) for key, own in stages]


class RowProblemError(UserError):
    """A processor cannot deal with a row."""

    def __init__(self, message: str, step: str = "", order: int = 0) -> None:
        super().__init__(message)
        self.step = step
        self.position = order // CHILDREN


@dataclass(frozen=True, kw_only=True)
class Router:
    """Where a row goes at the end of a stage."""

    spill: Spill
    key: str | None = None
    """The next stage groups by this; None when it is the last one, which puts rows in order."""
    shuffle: Shuffle | None = None
    end: int | None = None
    """An order that no row reaches; None where tasks come in order, so that there is one part."""

    def part_of(self, item: Item) -> tuple[int, int, bytes]:
        """Return part, order and group."""
        if self.key is not None:
            text = key_text(item.row, self.key).encode("utf-8", "surrogatepass")
            group = blake2b(text, digest_size=16).digest()
            return self._scaled(int.from_bytes(group[:8], "big"), HASH_LIMIT), item.order, group
        if self.shuffle is not None:
            salt = self.shuffle.seed.to_bytes(8, "big", signed=True)
            number = blake2b(item.order.to_bytes(8, "big"), digest_size=8, key=salt).digest()
            order = int.from_bytes(number, "big")
            return self._scaled(order, HASH_LIMIT), order, _NO_GROUP
        return 0 if self.end is None else self._scaled(item.order, self.end), item.order, _NO_GROUP

    def _scaled(self, number: int, limit: int) -> int:
        return min(number * self.spill.parts // limit, self.spill.parts - 1)


class Result(NamedTuple):
    """What a task has done."""

    run: Run
    tally: Tally
    rows: int
    """Rows that it has read,"""
    read_bytes: int
    """and their bytes."""


@dataclass(frozen=True, kw_only=True)
class Worker:
    """Does the tasks of one stage."""

    stage: Stage
    router: Router
    names: tuple[str, ...]
    """Of all steps."""
    source: Spill | None = None
    skip_bad_rows: bool = False

    def read(self, blocks: Sequence[Block]) -> Result:
        """Do the first stage for some rows of the input."""
        work = self._work()
        for block in blocks:
            self._finish(work, self._through(work, self._parsed(work, block)))
        size = sum(len(raw) + 1 for block in blocks for raw in block.rows)
        return self._result(work, sum(len(block.rows) for block in blocks), size)

    def group(self, part: int) -> Result:
        """Do a later stage for one part."""
        assert self.source is not None
        work = self._work()
        groups: dict[bytes, list[Record]] = defaultdict(list)
        rows = size = 0
        for record in self.source.read(part):
            groups[record.group].append(record)
            rows, size = rows + 1, size + HEADER.size + len(record.raw)
        while groups:  # what is done needs no memory any more
            group = groups.pop(next(iter(groups)))
            items = [Item(r.order, orjson.loads(r.raw), r.raw, r.split) for r in group]
            self._finish(work, self._through(work, items))
        return self._result(work, rows, size)

    def _work(self) -> "_Work":
        tally = Tally(steps=[StepStats(name=name) for name in self.names])
        return _Work(tally, RunWriter(self.router.spill.parts))

    def _result(self, work: "_Work", rows: int, size: int) -> Result:
        return Result(self.router.spill.write(work.writer), work.tally, rows, size)

    def _parsed(self, work: "_Work", block: Block) -> list[Item]:
        stats = work.tally.steps[0]
        items: list[Item] = []
        for index, raw in enumerate(block.rows):
            order = (block.position + index) * CHILDREN
            try:
                row = parse_row(block.path, block.line(index))
            except BadRowError as error:
                if not self.skip_bad_rows:
                    raise
                stats.drop("not a JSON object", order, {"line": f"{error}"})
                continue
            items.append(Item(order, row, raw))
        stats.rows_in += len(block.rows)
        stats.rows_out += len(items)
        return items

    def _through(self, work: "_Work", items: list[Item]) -> list[Item]:
        for step in self.stage.steps:
            stats = work.tally.steps[step.number]
            stats.rows_in += len(items)
            items = _run_step(work.tally, step, items)
            stats.rows_out += len(items)
        return items

    def _finish(self, work: "_Work", items: Iterable[Item]) -> None:
        """Hand rows on to the next stage."""
        put, part_of, last = work.writer.put, self.router.part_of, self.router.key is None
        for item in items:
            try:
                part, order, group = part_of(item)
            except UserError as error:
                raise RowProblemError(str(error), f"grouping by '{self.router.key}'", item.order) from None
            raw = orjson.dumps(item.row) if item.raw is None else item.raw
            put(part, Record(order, item.split, group, raw))
            if last:
                note_lengths(work.tally, item.row)


class _Work(NamedTuple):
    tally: Tally
    writer: RunWriter


def _run_step(tally: Tally, step: Step, items: list[Item]) -> list[Item]:
    """Return the rows that a step leaves."""
    processor, stats = step.processor, tally.steps[step.number]
    at = _Place(items[0].order if items else 0)
    try:
        if isinstance(processor, RowFilter):
            return _filter_rows(processor, stats, items, at)
        if isinstance(processor, RowMap):
            return _map_rows(processor, stats, items, at)
        if isinstance(processor, GroupFilter):
            return _filter_group(processor, stats, items) if items else []
        if isinstance(processor, GroupMap):
            return _map_group(processor, stats, items) if items else []
        if isinstance(processor, Split):
            return _number_rows(processor, tally, items, at)
    except RowProblemError:
        raise
    except UserError as error:
        raise RowProblemError(str(error), step.name, at.order) from None
    except Exception as error:
        place = f"processor {step.name}, row at position {at.order // CHILDREN} of the input"
        error.add_note(f"{place}\n{traceback.format_exc()}")
        raise
    return items


class _Place:
    """Which row is being looked at, for messages."""

    __slots__ = ("order",)

    def __init__(self, order: int) -> None:
        self.order = order


def _filter_rows(processor: RowFilter, stats: StepStats, items: list[Item], at: _Place) -> list[Item]:
    kept, reject = [], processor.reject
    for item in items:
        at.order = item.order
        reason = reject(item.row)
        if reason is None:
            kept.append(item)
        else:
            stats.drop(reason, item.order, item.row)
    return kept


def _map_rows(processor: RowMap, stats: StepStats, items: list[Item], at: _Place) -> list[Item]:
    kept = []
    for item in items:
        at.order = item.order
        try:
            changed = processor.change(item.row)
        except DropRow as why:
            stats.drop(str(why), item.order, item.row)
            continue
        if isinstance(changed, list):
            stats.created += len(changed) - 1
            kept += [Item(item.order + i, row, None, item.split) for i, row in enumerate(changed)]
        else:
            kept.append(item if changed is None else Item(item.order, changed, None, item.split))
    return kept


def _filter_group(processor: GroupFilter, stats: StepStats, items: list[Item]) -> list[Item]:
    kept = []
    for item, reason in zip(items, processor.reject([item.row for item in items]), strict=True):
        if reason is None:
            kept.append(item)
        else:
            stats.drop(reason, item.order, item.row)
    return kept


def _map_group(processor: GroupMap, stats: StepStats, items: list[Item]) -> list[Item]:
    rows, fates = processor.combine([item.row for item in items])
    for item, reason in zip(items, fates, strict=True):
        if reason is not None:
            stats.drop(reason, item.order, item.row)
    stats.merged += sum(reason is None for reason in fates)
    stats.created += len(rows)
    first = items[0]
    return [Item(first.order + i, row, None, first.split) for i, row in enumerate(rows)]


def _number_rows(processor: Split, tally: Tally, items: list[Item], at: _Place) -> list[Item]:
    tally.wanted = processor.problems
    for item in items:
        at.order = item.order
        item.split = processor.number(item.row)
        if tally.wanted:
            tally.note_number(item.split)
    return items


def batches(blocks: Iterable[Block], size: int) -> Iterable[list[Block]]:
    """Yield neighbouring blocks, about `size` bytes together."""
    batch: list[Block] = []
    held = 0
    for block in itertools.chain(blocks, [None]):
        if block is None or held >= size:
            if batch:
                yield batch
            batch, held = [], 0
        if block is not None:
            batch.append(block)
            held += sum(map(len, block.rows))
