"""Several journals of one output, written side by side and read as one."""

import os
from array import array
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from nemo_skills.core.errors import UserError
from nemo_skills.core.jsonl._journal import _READ_BUFFER, _READ_GUESS, _parse

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
        number, offset = len(self._descriptors), 0
        with open(descriptor, "rb", buffering=_READ_BUFFER, closefd=False) as file:
            for line in file:
                record = _parse(line[:-1]) if line.endswith(b"\n") else None
                if record is not None:
                    self._note(record.position, record.row_check, number, offset)
                offset += len(line)

    def has(self, position: int) -> bool:
        """Whether some journal has the answer to the row that the input has at this position."""
        return self._files[position] != _NO_FILE

    def row(self, position: int) -> bytes:
        """Return what was recorded for a position that `has` one."""
        descriptor, offset = self._descriptors[self._files[position] - 1], self._offsets[position]
        size = _READ_GUESS
        while True:
            chunk = os.pread(descriptor, size, offset)
            line, newline, _ = chunk.partition(b"\n")
            record = _parse(line) if newline else None
            if record is not None and record.position == position:
                return b"{" + line[record.body :].removeprefix(b",")
            if newline or len(chunk) < size:
                raise UserError("A journal changed while it was read; run the command again.", exit_code=1)
            size *= 4

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
