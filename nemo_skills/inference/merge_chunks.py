"""Puts the chunks of an output together, once all of them are complete.

python -m nemo_skills.inference.merge_chunks ++output_file=out/output.jsonl ++num_chunks=4
"""

import zlib
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path

from nemo_skills.core.errors import UserError
from nemo_skills.core.hydra import MISSING, main, opt
from nemo_skills.core.jsonl import FileStamp, Journal, Written, atomic_output, disk_errors
from nemo_skills.core.log import get_logger
from nemo_skills.inference.done import DoneMark, OutputStamp, key_pieces, pieces
from nemo_skills.inference.outputs import OutputPaths
from nemo_skills.inference.survey import InputState

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
    if _to_write(whole, chunks) and missing_chunks(output_file, num_chunks):
        return False
    # the journal's lock: nobody else may write this output meanwhile
    lock = Journal.open(whole.journal)
    try:
        if not lock.empty:
            raise UserError(
                f"{whole.journal} holds an unfinished run without chunks; finish or remove it first."
            )
        if _to_write(whole, chunks):
            _write_whole(whole, chunks)
        for chunk in chunks:
            for path in (chunk.done, chunk.output, chunk.failed):
                path.unlink(missing_ok=True)
        lock.remove()
    finally:
        lock.close()
    return True


def missing_chunks(output_file: str | Path, num_chunks: int) -> list[Path]:
    """Return the outputs of chunks that are not complete, or not for the input that another one answers."""
    chunks = [OutputPaths.of(output_file, number) for number in range(num_chunks)]
    stamps = _newest_stamps(chunks)
    return [chunk.output for chunk in chunks if not chunk.complete or _stamps(chunk) not in (stamps, None)]


def _to_write(whole: OutputPaths, chunks: list[OutputPaths]) -> bool:
    """Whether the whole is not there, or its chunks have been done again for an input that has changed."""
    return not whole.complete or _newest_stamps(chunks) not in (_stamps(whole), None)


def _newest_stamps(chunks: list[OutputPaths]) -> tuple[FileStamp, ...] | None:
    """Return how the input looked to the chunk that was finished last."""
    complete = [chunk for chunk in chunks if chunk.complete]
    return _stamps(max(complete, key=lambda chunk: chunk.done.stat().st_mtime_ns)) if complete else None


def _stamps(paths: OutputPaths) -> tuple[FileStamp, ...] | None:
    source = DoneMark.read(paths.done).source
    return source.stamps if source is not None else None


def _write_whole(whole: OutputPaths, chunks: list[OutputPaths]) -> None:
    marks = [DoneMark.read(chunk.done) for chunk in chunks]
    source = _whole_source(whole, marks)
    if any(mark.settings != marks[0].settings for mark in marks):
        raise UserError(f"The chunks of {whole.output} were made with different settings.", exit_code=1)
    written = _concatenate(whole.output, [chunk.output for chunk in chunks])
    rows = sum(mark.rows for mark in marks)
    if rows != written.rows:
        whole.output.unlink()
        raise UserError(
            f"The chunks of {whole.output} hold {written.rows} rows where {rows} were written.", exit_code=1
        )
    failed = [chunk.failed for chunk in chunks if chunk.failed.exists()]
    if failed:
        _concatenate(whole.failed, failed)
    else:
        whole.failed.unlink(missing_ok=True)
    total = DoneMark(
        rows=rows,
        failed=sum(mark.failed for mark in marks),
        skipped=sum(mark.skipped for mark in marks),
        source=source,
        output=OutputStamp.of(whole.output, written),
        settings=marks[0].settings,
    )
    total.write(whole.done, chain.from_iterable(key_pieces(chunk.done) for chunk in chunks))


def _whole_source(whole: OutputPaths, marks: list[DoneMark]) -> InputState | None:
    """Return what input the chunks answer together, as far as all of them know.

    Raises:
        UserError: they are of different cuts, as from calls with another number of chunks.
    """
    sources = [mark.source for mark in marks if mark.source is not None]
    if len(sources) < len(marks):
        return None
    spans = [source.span for source in sources]
    neighbours = all(this.stop == following.start for this, following in pairwise(spans))
    if spans[0].start or not neighbours or {source.total for source in sources} != {spans[-1].stop}:
        parts = ", ".join(f"{source.span.start}-{source.span.stop} of {source.total}" for source in sources)
        raise UserError(
            f"The chunks of {whole.output} do not fit together (rows {parts}): some were made with another"
            " number of chunks or max_samples. Run them again, then merge.",
            exit_code=1,
        )
    return InputState(
        stamps=sources[0].stamps,
        selection=sources[0].selection.whole,
        parts=tuple(part for source in sources for part in source.parts),
        total=sources[0].total,
        checked=all(source.checked for source in sources),
    )


def _concatenate(target: Path, parts: list[Path]) -> Written:
    rows = size = crc = 0
    with disk_errors(target, "The chunks are kept."), atomic_output(target) as file:
        for part in parts:
            with part.open("rb") as source:
                for piece in pieces(source):
                    file.write(piece)
                    rows += piece.count(b"\n")
                    size += len(piece)
                    crc = zlib.crc32(piece, crc)
    return Written(rows, size, crc)


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
