"""Names of the files of one output, and the rows that got no answer."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple, Self

import orjson

from nemo_skills.core.jsonl import Line, add_fields, disk_errors, write_file


@dataclass(frozen=True, kw_only=True)
class OutputPaths:
    """All files that belong to one output file."""

    output: Path

    @classmethod
    def of(cls, output_file: str | Path, chunk_id: int | None = None) -> Self:
        """Name the files for an output, or for one chunk of it: `output.jsonl` → `output_chunk_3.jsonl`."""
        path = Path(output_file).expanduser().absolute()
        if chunk_id is not None:
            path = path.with_name(f"{path.stem}_chunk_{chunk_id}{path.suffix}")
        return cls(output=path)

    @property
    def journal(self) -> Path:
        """Finished rows while the run lasts, in the order in which they finished."""
        return self._with("-async")

    @property
    def settings(self) -> Path:
        """What the journal's answers were made with."""
        return self._with("-async-settings")

    @property
    def done(self) -> Path:
        """Says that the output is complete."""
        return self._with(".done")

    @property
    def failed(self) -> Path:
        """Rows without an answer, with the reason."""
        return self.output.with_name(f"{self.output.stem}.failed{self.output.suffix}")

    @property
    def progress(self) -> Path:
        """Says how far a run is, while it lasts and after it stopped; `report.py` describes it."""
        return self.output.with_name(f"{self.output.stem}.progress.json")

    @property
    def complete(self) -> bool:
        """Whether an earlier run has finished this output."""
        return self.done.exists() and self.output.exists()

    def _with(self, suffix: str) -> Path:
        return self.output.with_name(self.output.name + suffix)


class DoneMark(NamedTuple):
    """What the `.done` file says about an output."""

    rows: int
    failed: int
    skipped: int
    start: int = 0
    """Position of the first row of the input that it covers."""
    stop: int = 0
    """Position behind the last one."""
    total: int = 0
    """How many rows of the input all chunks cover together."""

    @classmethod
    def read(cls, path: Path) -> "DoneMark":
        """Read a mark; a file that says nothing counts as nothing known."""
        try:
            data = orjson.loads(path.read_bytes())
            return cls(**{name: int(data.get(name, 0)) for name in cls._fields})
        except (OSError, ValueError, KeyError, TypeError):
            return cls(rows=0, failed=0, skipped=0)

    def write(self, path: Path) -> None:
        """Write the mark; afterwards the output counts as complete."""
        with disk_errors(path):
            write_file(path, orjson.dumps(self._asdict()) + b"\n")


class FailedRows:
    """The side file of rows that got no answer; written row by row, so that it can be watched."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self.count = 0
        with disk_errors(path):
            path.unlink(missing_ok=True)

    def add(self, line: Line, row: Mapping[str, object], why: Mapping[str, object]) -> None:
        """Write a row with the reason for its failure."""
        self.count += 1
        with disk_errors(self._path, "Finished rows are kept: make room, then run the same command again."):
            if self._file is None:
                self._file = self._path.open("wb", buffering=0)
            fields = {"_position": line.position, "_line": line.number, **why}
            self._file.write(add_fields(line.raw, row, fields) + b"\n")

    def close(self) -> None:
        """Make the file durable."""
        if self._file is not None:
            with disk_errors(self._path), self._file:
                os.fsync(self._file.fileno())
            self._file = None
