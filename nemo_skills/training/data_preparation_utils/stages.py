"""Which steps run together in a stage, and one task of it: rows of the input, or a sorted part."""

import itertools
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
            if not items:
                break
            items = run_step(step, work.tally, items)
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
