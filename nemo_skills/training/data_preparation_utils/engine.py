"""Runs a list of steps over files of any size: memory is bounded by the parts, not by the number of rows."""

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple, Self

from nemo_skills.core.errors import UserError
from nemo_skills.core.jsonl import InputFiles, atomic_output, disk_errors
from nemo_skills.training.data_preparation_utils.order import Shuffle, Split
from nemo_skills.training.data_preparation_utils.pool import run_tasks
from nemo_skills.training.data_preparation_utils.progress import progress
from nemo_skills.training.data_preparation_utils.running import CHILDREN, RowProblemError, Step
from nemo_skills.training.data_preparation_utils.spill import Spill
from nemo_skills.training.data_preparation_utils.stages import (
    Result,
    Router,
    Worker,
    batches,
    cut_into_stages,
)
from nemo_skills.training.data_preparation_utils.stats import StepStats, Tally

_MOST_PARTS = 8192
_READING = "read input"


class Written(NamedTuple):
    """A file that was written."""

    path: Path
    rows: int
    size: int
    sha256: str


class Outcome(NamedTuple):
    """What came of a run; `files` is empty when no row was left."""

    tally: Tally
    files: tuple[Written, ...]


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A run that is about to begin."""

    inputs: InputFiles
    steps: tuple[Step, ...]
    output: Path
    validation: Path
    processes: int
    part_bytes: int
    tmp_dir: Path
    manifest: Path
    """Taken away before the output changes: where there is one, all files belong together."""
    skip_bad_rows: bool = False

    def run(self) -> Outcome:
        """Run all steps and write the output.

        Raises:
            UserError: a row is no good, or a disk is full; nothing is written then.
        """
        for step in self.steps:
            step.processor.prepare()
        stages = cut_into_stages(self.steps)
        tally = Tally(steps=[StepStats(name=name) for name in self._names], wanted=self._wanted)
        source: Spill | None = None
        with ExitStack() as stack:
            for number, stage in enumerate(stages):
                later = stages[number + 1 :]
                router = self._router(later[0].key if later else None, source, tally)
                spill = stack.enter_context(router.spill)
                worker = Worker(
                    stage=stage, router=router, names=self._names, source=source,
                    skip_bad_rows=self.skip_bad_rows,
                )  # fmt: skip
                self._run_stage(worker, tally)
                if source is not None:
                    source.close()
                source = spill
            assert source is not None
            return self._write(source, tally, one_by_one=len(stages) == 1 and self._shuffle is None)

    @property
    def _names(self) -> tuple[str, ...]:
        return (_READING, *(step.name for step in self.steps))

    @property
    def _shuffle(self) -> Shuffle | None:
        found = [step.processor for step in self.steps if isinstance(step.processor, Shuffle)]
        return found[-1] if found else None

    @property
    def _split(self) -> Split | None:
        found = [step.processor for step in self.steps if isinstance(step.processor, Split)]
        return found[-1] if found else None

    @property
    def _wanted(self) -> int:
        return self._split.problems if self._split else 0

    def _router(self, key: str | None, source: Spill | None, tally: Tally) -> Router:
        """Return where the rows of a stage go, in as many parts as will fit in memory."""
        size = source.size if source is not None else self.inputs.text_size()
        parts = min(max(1, -(-size // self.part_bytes)), _MOST_PARTS)
        if key is not None or self._shuffle is not None:
            return Router(spill=Spill(self.tmp_dir, parts), key=key, shuffle=self._shuffle)
        if source is None:
            return Router(spill=Spill(self.tmp_dir, 1))
        return Router(spill=Spill(self.tmp_dir, parts), end=tally.steps[0].rows_in * CHILDREN)

    def _run_stage(self, worker: Worker, tally: Tally) -> None:
        source, spill = worker.source, worker.router.spill
        what = "Reading" if source is None else f"Grouping by {worker.stage.key}"
        results: Iterator[Result]
        if source is None:
            blocks = batches(self.inputs.blocks(), self.part_bytes // 2)
            results = run_tasks(worker.read, blocks, self.processes)
        else:
            results = run_tasks(worker.group, range(source.parts), self.processes)
        total = source.size if source is not None else self.inputs.text_size()
        done = 0
        try:
            with progress(what) as shown:
                for result in results:
                    spill.runs.append(result.run)
                    tally.add(result.tally)
                    done += result.read_bytes
                    shown.advance(result.rows, min(done / max(total, 1), 1.0))
        except RowProblemError as problem:
            raise UserError(f"{self._place(problem.position)}: {problem.step}: {problem}") from None

    def _place(self, position: int) -> str:
        """Return file and line of a row."""
        for block in self.inputs.blocks(position, position + 1):
            return block.line(0).place
        return f"row {position} of the input"

    def _write(self, spill: Spill, tally: Tally, *, one_by_one: bool) -> Outcome:
        """Put the rows in order and write them; the files appear together, at the end."""
        limit = self._split.limit(tally.smallest) if self._split else 0
        parts = (
            (spill.read(0, [run]) for run in spill.runs)
            if one_by_one
            else map(spill.read, range(spill.parts))
        )
        count = tally.steps[-1].rows_out
        if not count:
            return Outcome(tally, ())
        with disk_errors(self.manifest):
            self.manifest.unlink(missing_ok=True)
        with ExitStack() as stack, progress("Writing") as shown:
            train = stack.enter_context(_Output.open(self.output))
            validation = stack.enter_context(_Output.open(self.validation)) if self._split and limit else None
            written = 0
            for records in parts:
                if validation is not None:
                    validation.write([raw for _, split, _, raw in records if split < limit])
                train.write([raw for _, split, _, raw in records if split >= limit])
                written += len(records)
                shown.advance(len(records), written / count)
            if not train.rows:
                raise UserError(
                    f"validation={self._split and self._split.validation} leaves no training rows."
                )
        outputs = [train, *([validation] if validation and validation.rows else [])]
        return Outcome(tally, tuple(output.written() for output in outputs))


class _EmptyError(Exception):
    """A file has no rows."""


class _Output:
    """A file that is being written."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path = path
        self._file = file
        self.rows = 0
        self._size = 0
        self._hash = hashlib.sha256()

    @classmethod
    @contextmanager
    def open(cls, path: Path) -> Iterator[Self]:
        """Open a file that appears when the block ends well, if it has rows."""
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with suppress(_EmptyError), atomic_output(path) as file:
                output = cls(path, file)
                yield output
                if not output.rows:
                    raise _EmptyError

    def write(self, lines: list[bytes]) -> None:
        """Add rows."""
        if lines:
            data = b"\n".join([*lines, b""])
            self._file.write(data)
            self._hash.update(data)
            self.rows += len(lines)
            self._size += len(data)

    def written(self) -> Written:
        """Say what was written."""
        return Written(self._path, self.rows, self._size, self._hash.hexdigest())
