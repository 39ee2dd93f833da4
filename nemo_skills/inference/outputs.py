"""Names of the files of one output, and the rows that got no answer."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

from nemo_skills.core.jsonl import Line, add_fields, disk_errors


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

    def include(self, path: Path) -> bool:
        """Whether a file is one of these, or of those that a chunk of this output would write."""
        path, output = path.resolve(), self.output.resolve()
        stem, suffix = re.escape(self.output.stem), re.escape(self.output.suffix)
        name = rf"{stem}(_chunk_\d+)?(\.failed)?{suffix}(-async|\.done)?"
        return path == output or (path.parent == output.parent and re.fullmatch(name, path.name) is not None)

    def _with(self, suffix: str) -> Path:
        return self.output.with_name(self.output.name + suffix)


class FailedRows:
    """The side file of rows that got no answer; written row by row, so that it can be watched."""

    def __init__(self, path: Path, *, name_files: bool = False) -> None:
        self._path = path
        self._name_files = name_files
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
            place = {"_file": str(line.path)} if self._name_files else {}
            fields = {"_position": line.position, **place, "_line": line.number, **why}
            self._file.write(add_fields(line.raw, row, fields) + b"\n")

    def close(self) -> None:
        """Make the file durable."""
        if self._file is not None:
            with disk_errors(self._path), self._file:
                os.fsync(self._file.fileno())
            self._file = None
