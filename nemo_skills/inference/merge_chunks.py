"""Puts the chunks of an output together, once all of them are complete.

python -m nemo_skills.inference.merge_chunks ++output_file=out/output.jsonl ++num_chunks=4
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from nemo_skills.core.errors import UserError
from nemo_skills.core.hydra import MISSING, main, opt
from nemo_skills.core.jsonl import Journal, atomic_output, count_rows, disk_errors
from nemo_skills.core.log import get_logger
from nemo_skills.inference.outputs import DoneMark, OutputPaths

_log = get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class MergeConfig:
    """Puts the chunks of an output together."""

    output_file: str = opt(MISSING, "the whole output; its chunks are named <output>_chunk_<id>")
    num_chunks: int = opt(MISSING, "how many chunks there are")
    if_complete: bool = opt(False, "end well, doing nothing, while chunks are missing")

    def __post_init__(self) -> None:
        """Check the number of chunks."""
        if self.num_chunks < 1:
            raise UserError("num_chunks must be positive.")


def merge_chunks(output_file: str | Path, num_chunks: int) -> bool:
    """Write the whole output and remove its chunks; False, changing nothing, while a chunk is missing.

    Killed at any moment, it can simply be called again. Chunks are removed after the whole is safely there.

    Raises:
        UserError: another process merges this output, the disk is full, or a chunk lost rows.
    """
    whole = OutputPaths.of(output_file)
    chunks = [OutputPaths.of(output_file, number) for number in range(num_chunks)]
    if not whole.complete and missing_chunks(output_file, num_chunks):
        return False
    # the journal's lock: nobody else may write this output meanwhile
    lock = Journal.open(whole.journal)
    try:
        if not lock.empty:
            raise UserError(
                f"{whole.journal} holds an unfinished run without chunks; finish or remove it first."
            )
        if not whole.complete:
            _write_whole(whole, chunks)
        for chunk in chunks:
            for path in (chunk.done, chunk.output, chunk.failed):
                path.unlink(missing_ok=True)
        lock.remove()
    finally:
        lock.close()
    return True


def missing_chunks(output_file: str | Path, num_chunks: int) -> list[Path]:
    """Return the outputs of chunks that are not complete."""
    chunks = (OutputPaths.of(output_file, number) for number in range(num_chunks))
    return [chunk.output for chunk in chunks if not chunk.complete]


def _write_whole(whole: OutputPaths, chunks: list[OutputPaths]) -> None:
    marks = [DoneMark.read(chunk.done) for chunk in chunks]
    _check_parts(whole, marks)
    _concatenate(whole.output, [chunk.output for chunk in chunks])
    rows = count_rows(whole.output)
    total = DoneMark(
        rows=sum(mark.rows for mark in marks),
        failed=sum(mark.failed for mark in marks),
        skipped=sum(mark.skipped for mark in marks),
        stop=marks[-1].stop,
        total=marks[-1].total,
    )
    if rows != total.rows:
        whole.output.unlink()
        raise UserError(
            f"The chunks of {whole.output} hold {rows} rows where {total.rows} were written.", exit_code=1
        )
    failed = [chunk.failed for chunk in chunks if chunk.failed.exists()]
    if failed:
        _concatenate(whole.failed, failed)
    total.write(whole.done)


def _check_parts(whole: OutputPaths, marks: list[DoneMark]) -> None:
    """Refuse chunks of different cuts, as from calls with another number of chunks or another input."""
    starts = [0, *(mark.stop for mark in marks)]
    fits = all(mark.start == start for mark, start in zip(marks, starts, strict=False))
    if not fits or {mark.total for mark in marks} != {marks[-1].stop}:
        parts = ", ".join(f"{mark.start}-{mark.stop} of {mark.total}" for mark in marks)
        raise UserError(
            f"The chunks of {whole.output} do not fit together (rows {parts}): some were made with another"
            " number of chunks, max_samples or input. Make them again with ++skip_filled=false.",
            exit_code=1,
        )


def _concatenate(target: Path, parts: list[Path]) -> None:
    with disk_errors(target, "The chunks are kept."), atomic_output(target) as file:
        for part in parts:
            with part.open("rb") as source:
                shutil.copyfileobj(source, file, 1 << 20)


@main(MergeConfig)
def run(config: MergeConfig) -> None:
    """Merge the chunks of an output into one file."""
    if merge_chunks(config.output_file, config.num_chunks):
        _log.info("%s holds all %d chunks.", config.output_file, config.num_chunks)
        return
    missing = missing_chunks(config.output_file, config.num_chunks)
    text = (
        f"{len(missing)} of {config.num_chunks} chunks are not complete: {', '.join(map(str, missing[:5]))}"
    )
    if not config.if_complete:
        raise UserError(f"{text}. Run them again, then merge.", exit_code=1)
    _log.info("Not merged yet: %s", text)


if __name__ == "__main__":
    run()
