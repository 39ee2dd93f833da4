"""What a job does with each row, and the rows of its input in their order."""

import zlib
from array import array
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any, NamedTuple, Protocol

from nemo_skills.core.errors import UserError
from nemo_skills.core.jsonl import InputFiles, Line, row_check
from nemo_skills.inference.offline.ranks import Ranks
from nemo_skills.inference.offline.spec import Item, Result
from nemo_skills.inference.outputs import OutputPaths


class Task(Protocol):
    """What is asked about each row, and what is written for it."""

    @property
    def paths(self) -> OutputPaths:
        """Where the output goes."""

    @property
    def source(self) -> InputFiles:
        """The input."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """All that answers depend on, besides the input."""

    @property
    def passes(self) -> int:
        """How many times the whole input is answered."""

    @property
    def skips_bad_rows(self) -> bool:
        """Whether rows that cannot be used are left out."""

    def select(self, count: int) -> int:
        """Return how many of the input's rows to do, from the first on."""

    def allowed_failures(self, total: int) -> int:
        """Return with how many rows without an answer the job still ends well."""

    def item(self, line: Line, position: int) -> Item:
        """Return what the model is asked.

        Raises:
            UserError: the row lacks something.
        """

    def row(self, line: Line, result: Result) -> bytes:
        """Return the output row, without what depends on the whole input."""

    def placed(self, row: bytes, position: int, count: int) -> bytes:
        """Return a row as it stands in the output, which has `count` rows for each pass."""


class Place(NamedTuple):
    """A row of the input, in one of the passes over it."""

    line: Line
    position: int
    """In the output, as if no row were left out."""
    batch: int


class Inputs:
    """The rows that a job takes."""

    def __init__(self, task: Task, batch: int) -> None:
        """Read the input once, for the checksums of its rows.

        Raises:
            UserError: the input has no rows.
        """
        self._task, self._batch = task, batch
        checks = array("I")
        for block in task.source.blocks():
            checks.extend(map(row_check, block.rows))
        if not checks:
            raise UserError(f"The input has no rows: {task.source}.")
        self.count = task.select(len(checks))
        self._checks = checks[: self.count]
        self.total = self.count * task.passes

    @property
    def fingerprint(self) -> dict[str, int]:
        """What tells whether the input has changed."""
        return {"rows": self.count, "check": zlib.crc32(self._checks.tobytes())}

    @property
    def checks(self) -> "array[int]":
        """The checksum of every position of the output."""
        return self._checks * self._task.passes

    def places(self) -> Iterator[Place]:
        """Yield all rows in the order of the output."""
        batches = -(-self.count // self._batch)
        for number in range(self._task.passes):
            for block in self._task.source.blocks(0, self.count):
                for line in map(block.line, range(len(block.rows))):
                    batch = number * batches + line.position // self._batch
                    yield Place(line, number * self.count + line.position, batch)

    @property
    def batch_count(self) -> int:
        """How many batches there are, all passes together."""
        return -(-self.count // self._batch) * self._task.passes

    def batches(self, ranks: Ranks) -> Iterator[tuple[int, list[Place]]]:
        """Yield number and rows of the batches of one rank."""
        for number, places in groupby(self.places(), key=lambda place: place.batch):
            if number % ranks.size == ranks.rank:
                yield number, list(places)
