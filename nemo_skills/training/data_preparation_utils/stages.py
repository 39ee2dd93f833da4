"""Which steps run together in a stage, and one task of it: rows of the input, or a sorted part."""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

import orjson

from nemo_skills.core.errors import UserError
from nemo_skills.core.jsonl import BadRowError, Block, parse_row
from nemo_skills.training.data_preparation_utils.base import (
    GroupMap,
    GroupProcessor,
    RowMap,
    key_text,
)
from nemo_skills.training.data_preparation_utils.lengths import note_lengths
from nemo_skills.training.data_preparation_utils.order import Shuffle
from nemo_skills.training.data_preparation_utils.running import (
    CHILDREN,
    Item,
    RowProblemError,
    Step,
    run_step,
)
from nemo_skills.training.data_preparation_utils.spill import HEADER, Record, Run, RunWriter, Spill
from nemo_skills.training.data_preparation_utils.stats import StepStats, Tally

_NO_GROUP = bytes(16)
_BATCH = 512


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


@dataclass(frozen=True, kw_only=True)
class Router:
    """Where a row goes at the end of a stage."""

    spill: Spill
    key: str | None = None
    """The next stage groups by this; None when it is the last one, which puts rows in order."""
    shuffle: Shuffle | None = None
    end: int | None = None
    """An order that no row reaches; None where tasks come in order, so that there is one part."""

    def send(self, items: Iterable[Item], writer: RunWriter) -> None:
        """Hand rows on.

        Raises:
            RowProblemError: a row lacks the key to group by.
        """
        if self.key is not None:
            self._by_group(self.key, items, writer)
        elif self.shuffle is not None:
            self._by_lot(self.shuffle.seed, items, writer)
        else:
            for item in items:
                part = 0 if self.end is None else item.order * self.spill.parts // self.end
                writer.put(part, item.order, item.split, _NO_GROUP, item.text())

    def _by_group(self, key: str, items: Iterable[Item], writer: RunWriter) -> None:
        parts, last = self.spill.parts, None
        group, part = _NO_GROUP, 0
        for item in items:
            try:
                text = key_text(item.row, key)
            except UserError as error:
                raise RowProblemError(str(error), f"grouping by '{key}'", item.order) from None
            if text != last:
                last = text
                group = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
                part = int.from_bytes(group[:8], "big") * parts >> 64
            writer.put(part, item.order, item.split, group, item.text())

    def _by_lot(self, seed: int, items: Iterable[Item], writer: RunWriter) -> None:
        parts, salt = self.spill.parts, seed.to_bytes(8, "big", signed=True)
        for item in items:
            lot = blake2b(item.order.to_bytes(8, "big"), digest_size=8, key=salt).digest()
            order = int.from_bytes(lot, "big")
            writer.put(order * parts >> 64, order, item.split, _NO_GROUP, item.text())


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
            groups[record[2]].append(record)
            rows, size = rows + 1, size + HEADER.size + len(record[3])
        waiting = list(groups.values())[::-1]
        groups.clear()
        items: list[Item] = []
        while waiting:  # what is done needs no memory any more
            group = waiting.pop()
            items += [Item(order, orjson.loads(raw), raw, split, key) for order, split, key, raw in group]
            if len(items) >= _BATCH or not waiting:
                self._finish(work, self._through(work, items))
                items = []
        return self._result(work, rows, size)

    def _work(self) -> "_Work":
        tally = Tally(steps=[StepStats(name=name) for name in self.names])
        return _Work(tally, RunWriter(self.router.spill.parts))

    def _result(self, work: "_Work", rows: int, size: int) -> Result:
        return Result(self.router.spill.write(work.writer), work.tally, rows, size)

    def _parsed(self, work: "_Work", block: Block) -> list[Item]:
        stats = work.tally.steps[0]
        first = block.position * CHILDREN
        try:
            rows = list(map(orjson.loads, block.rows))
            good = all(type(row) is dict for row in rows)
        except orjson.JSONDecodeError:
            good = False
        if good:
            orders = range(first, first + len(rows) * CHILDREN, CHILDREN)
            items = list(map(Item, orders, rows, block.rows))
        else:
            items = list(self._parsed_one_by_one(block, stats))
        stats.rows_in += len(block.rows)
        stats.rows_out += len(items)
        return items

    def _parsed_one_by_one(self, block: Block, stats: StepStats) -> Iterator[Item]:
        """Find the row that is no good."""
        for index, raw in enumerate(block.rows):
            line = block.line(index)
            try:
                yield Item(line.position * CHILDREN, parse_row(block.path, line), raw)
            except BadRowError as error:
                if not self.skip_bad_rows:
                    raise
                stats.drop("not a JSON object", line.position * CHILDREN, {"line": f"{error}"})

    def _through(self, work: "_Work", items: list[Item]) -> list[Item]:
        for step in self.stage.steps:
            if not items:
                break
            items = run_step(step, work.tally, items)
        return items

    def _finish(self, work: "_Work", items: list[Item]) -> None:
        """Hand rows on to the next stage."""
        self.router.send(items, work.writer)
        if self.router.key is None:
            note_lengths(work.tally, [item.row for item in items])


class _Work(NamedTuple):
    tally: Tally
    writer: RunWriter


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
