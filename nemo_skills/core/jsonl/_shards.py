"""Several journals of one output, written side by side and read as one."""

import os
from array import array
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from nemo_skills.core.errors import UserError
from nemo_skills.core.jsonl._records import Kind, Scan, read_record, row_of

_NO_FILE = 0


class Shards:
    """Where the record of every row is, over all journals; a position costs 10 bytes of memory.

    Reading needs no lock: unfinished and damaged records are passed over, as are those that answer another
    text than the input has now. Of several records of a row the first one read counts.
    """

    def __init__(self, row_checks: Sequence[int]) -> None:
        """Know the input, and no journal yet.

        Args:
            row_checks: `row_check` of the input row at every position.
        """
        self._row_checks = row_checks
        self._files = array("H", bytes(2 * len(row_checks)))
        self._offsets = array("q", bytes(8 * len(row_checks)))
        self._descriptors: list[int] = []
        self.found = 0
        """How many positions have a record."""

    def add(self, path: Path) -> None:
        """Read a journal, if it is there."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        self._descriptors.append(descriptor)
        number = len(self._descriptors)
        for batch in Scan(descriptor, os.fstat(descriptor).st_size):
            for record in batch.records():
                if record.kind == Kind.ROW:
                    self._note(record.position, record.key >> 32, number, record.offset)

    def has(self, position: int) -> bool:
        """Whether some journal has the answer to the row that the input has at this position."""
        return self._files[position] != _NO_FILE

    def row(self, position: int) -> bytes:
        """Return what was recorded for a position that `has` one."""
        descriptor, offset = self._descriptors[self._files[position] - 1], self._offsets[position]
        line = read_record(descriptor, offset, os.fstat(descriptor).st_size)
        if line is None:
            raise UserError("A journal changed while it was read; run the command again.", exit_code=1)
        return row_of(line)

    def close(self) -> None:
        """Close the files."""
        while self._descriptors:
            os.close(self._descriptors.pop())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _note(self, position: int, row_check: int, number: int, offset: int) -> None:
        known = position < len(self._row_checks) and self._row_checks[position] == row_check
        if known and self._files[position] == _NO_FILE:
            self._files[position], self._offsets[position] = number, offset
            self.found += 1
