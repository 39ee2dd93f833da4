"""Grades a file of rows in place: killed at any moment, it goes on where it stopped."""

import time
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson

from nemo_skills.core.errors import UserError
from nemo_skills.core.jsonl import (
    Journal,
    Written,
    add_fields,
    atomic_output,
    disk_errors,
    iter_blocks,
    iter_lines,
    parse_row,
    row_checks,
)
from nemo_skills.core.jsonl import Line as RowLine
from nemo_skills.evaluation.graders import GraderSpec
from nemo_skills.evaluation.pool import GradingPool, Item
from nemo_skills.evaluation.verdicts import Verdict
from nemo_skills.inference.done import DoneMark, OutputStamp, key_pieces
from nemo_skills.inference.outputs import OutputPaths

GRADE_FIELDS = ("predicted_answer", "verdict", "grade_details", "graded_by")
"""What grading adds to a row."""
_FLUSH_S = 1.0


@dataclass(kw_only=True)
class Summary:
    """What became of the rows of a file."""

    verdicts: Counter[str] = field(default_factory=Counter)
    graded: int = 0
    """Rows graded now; the others had their grades."""
    seconds: float = 0.0

    def __str__(self) -> str:
        total = self.verdicts.total()
        counts = ", ".join(f"{count} {verdict}" for verdict, count in self.verdicts.most_common())
        return f"{total} rows: {counts or 'none'}; {self.graded} graded in {self.seconds:.1f} s"


@dataclass(frozen=True, kw_only=True)
class FileGrading:
    """Grades files, one after the other."""

    spec: GraderSpec
    pool: GradingPool
    regrade: bool = False
    """Grade rows again that have a grade of the same grader and settings."""

    def run(self, path: Path) -> Summary:
        """Grade a file in place; rows that were graded with these settings keep their grades.

        Raises:
            UserError: a row lacks what the grader needs, another process grades this file, the disk is full.
        """
        grader = self.spec.make()
        work = _Work(path=path, fingerprint=self.spec.fingerprint, keys=grader.keys, regrade=self.regrade)
        journal = Journal.open(path.with_name(f"{path.name}-grading"))
        try:
            summary = work.grade(journal, self.pool)
            if summary.graded or not journal.empty:
                work.write(journal, summary)
            journal.remove()
        finally:
            if journal.empty:
                journal.remove()
            journal.close()
        return summary


@dataclass(kw_only=True)
class _Work:
    """One file."""

    path: Path
    fingerprint: str
    keys: tuple[str, ...]
    regrade: bool

    def grade(self, journal: Journal, pool: GradingPool) -> Summary:
        """Grade what has no grade yet; grades go to the journal."""
        note = orjson.dumps({"graded_by": self.fingerprint})
        if journal.note != note:
            journal.clear()
            journal.annotate(note)
        summary, started, flushed = Summary(), time.monotonic(), time.monotonic()
        with closing(pool.grade(self._items(journal, summary))) as graded:
            for position, (item, grade) in enumerate(graded):
                if grade is None:
                    continue
                row = orjson.loads(item.raw)
                fields = {**grade.fields(), "graded_by": self._mark(row)}
                journal.append(position, item.raw, orjson.dumps(fields))
                summary.graded += 1
                if time.monotonic() - flushed > _FLUSH_S:
                    journal.flush()
                    flushed = time.monotonic()
        summary.seconds = time.monotonic() - started
        return summary

    def write(self, journal: Journal, summary: Summary) -> None:
        """Put the grades into the file, which is replaced at once."""
        paths = OutputPaths.of(self.path)
        mark = DoneMark.read(paths.done)
        known = mark.output is not None and mark.output.fits(self.path)
        size = crc = rows = 0
        with disk_errors(self.path), atomic_output(self.path) as file:
            grades = journal.rows()
            for line in iter_lines(self.path):
                text = line.raw
                if journal.is_done(line.position):
                    fields = orjson.loads(next(grades))
                    text = add_fields(line.raw, parse_row(self.path, line), fields)
                    summary.verdicts[fields["verdict"]] += 1
                text += b"\n"
                file.write(text)
                rows, size = rows + 1, size + len(text)
                crc = zlib.crc32(text, crc)
        if known:
            # or a later run of the generation would not recognise its own output
            stamp = OutputStamp.of(self.path, Written(rows, size, crc))
            replace(mark, output=stamp).write(paths.done, key_pieces(paths.done))

    def _items(self, journal: Journal, summary: Summary) -> Iterator[Item]:
        for block in iter_blocks(self.path):
            todo = set(journal.match(block.position, row_checks(block.rows)).todo)
            for index, raw in enumerate(block.rows):
                line = block.line(index)
                row = self._checked(line)
                kept = self._kept(row)
                if kept is not None:
                    summary.verdicts[kept] += 1
                yield Item(raw, grade=kept is None and index in todo)

    def _checked(self, line: RowLine) -> dict[str, Any]:
        row = parse_row(self.path, line)
        missing = [key for key in self.keys if row.get(key) is None]
        if missing:
            known = ", ".join(row)
            raise UserError(f"{line.place}: the grader needs '{missing[0]}'; keys of the row: {known}")
        if isinstance(row.get("generation"), list):
            raise UserError(
                f"{line.place}: 'generation' is a list. Grading takes one answer to a row: use several seeds"
                " instead of inference.n."
            )
        return row

    def _kept(self, row: Mapping[str, Any]) -> str | None:
        """Return the verdict of a row that needs no grading: what broke the grader may be repaired by now."""
        if self.regrade or row.get("graded_by") != self._mark(row) or row["verdict"] == Verdict.grader_error:
            return None
        return str(row["verdict"])

    def _mark(self, row: Mapping[str, Any]) -> str:
        """Return what a row is marked with: grader and settings, and a checksum of all that was graded."""
        graded = {key: value for key, value in row.items() if key not in GRADE_FIELDS}
        return f"{self.fingerprint}-{zlib.crc32(orjson.dumps(graded)):08x}"
