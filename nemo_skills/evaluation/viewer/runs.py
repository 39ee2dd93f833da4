"""The files of one or several runs, as folders hold them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nemo_skills.core.errors import UserError
from nemo_skills.evaluation.metrics.report import BenchmarkReport
from nemo_skills.evaluation.viewer.rows import RowFile

_METRICS = "metrics.json"


@dataclass(frozen=True, kw_only=True)
class OutputFile:
    """A file of rows."""

    run: str
    """The folder it was found under, as the user named it."""
    name: str
    """Its path in that folder."""
    rows: RowFile
    report: BenchmarkReport | None = None
    """The scores of its benchmark."""

    @property
    def benchmark(self) -> str:
        """The name of its folder."""
        return self.rows.path.parent.name

    @property
    def size(self) -> str:
        """Its size, for people."""
        size = float(self.rows.path.stat().st_size)
        for unit in ("B", "kB", "MB", "GB"):
            if size < 1000:
                return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
            size /= 1000
        return f"{size:.1f} TB"


def find_files(folders: Sequence[Path]) -> tuple[OutputFile, ...]:
    """Return all JSONL files in folders; a folder may also be one such file.

    Raises:
        UserError: a folder does not exist, or there is no file at all.
    """
    found = []
    for folder in folders:
        if not folder.exists():
            raise UserError(f"{folder} does not exist")
        paths = [folder] if folder.is_file() else sorted(folder.rglob("*.jsonl"))
        for path in paths:
            name = path.name if path == folder else str(path.relative_to(folder))
            report = _report(path.parent / _METRICS)
            found.append(OutputFile(run=str(folder), name=name, rows=RowFile(path), report=report))
    if not found:
        raise UserError(f"no .jsonl file in {', '.join(map(str, folders))}")
    return tuple(found)


def _report(path: Path) -> BenchmarkReport | None:
    try:
        return BenchmarkReport.from_json(json.loads(path.read_text()))
    except (OSError, ValueError):
        return None
