"""The rows of the input that are still to do, one at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from nemo_skills.core.errors import UserError
from nemo_skills.core.jsonl import (
    Journal,
    Line,
    check_input,
    count_rows,
    iter_lines,
    parse_row,
    row_check,
)
from nemo_skills.core.log import get_logger
from nemo_skills.inference.config import GenerateConfig
from nemo_skills.inference.conversation import Conversation

_SHOWN = 5
_log = get_logger(__name__)


class Span(NamedTuple):
    """Positions of the rows to take: from `start` up to, not including, `stop`."""

    start: int
    stop: int
    total: int
    """How many rows all chunks take together."""

    @property
    def size(self) -> int:
        """How many rows that is."""
        return self.stop - self.start


def select_rows(config: GenerateConfig) -> Span:
    """Return which rows of the input this run takes: `max_samples` first, then the chunk.

    Raises:
        UserError: the file is missing, cannot be read, or has no rows.
    """
    path = config.input_path
    check_input(path)
    count = count_rows(path)
    if count == 0:
        raise UserError(f"Input file {path} has no rows.")
    count = min(count, config.row_limit or count)
    if config.num_chunks is None or config.chunk_id is None:
        return Span(0, count, count)
    first, behind = (count * chunk // config.num_chunks for chunk in (config.chunk_id, config.chunk_id + 1))
    return Span(first, behind, count)


def check_rows(path: Path, span: Span) -> None:
    """Parse every row, so that a bad one is found before hours of work, not after.

    Raises:
        BadRowError: a line is no row; the message names file and line.
    """
    for line in iter_lines(path, span.start, span.stop):
        parse_row(path, line)


class Work(NamedTuple):
    """A row to do, with its first prompt encoded."""

    line: Line
    row: dict[str, Any]
    prompt: bytes


@dataclass(kw_only=True)
class RowSource:
    """Reads the input once, passing over rows that are finished."""

    config: GenerateConfig
    conversation: Conversation
    journal: Journal
    span: Span
    skipped: int = 0
    """Bad rows left out (`on_bad_row=skip`)."""
    edited: int = 0
    """Rows whose text has changed since an earlier run answered them."""

    def __iter__(self) -> Iterator[Work]:
        """Yield rows to do; several workers may share one iterator."""
        path = self.config.input_path
        for line in iter_lines(path, self.span.start, self.span.stop):
            known = self.journal.has(line.position)
            if self.journal.expect(line.position, row_check(line.raw)):
                continue
            if known:
                self._note_edited(line)
            try:
                yield self._prepare(path, line)
            except UserError as error:
                if self.config.on_bad_row == "error":
                    raise
                self.skipped += 1
                if self.skipped <= _SHOWN:
                    _log.warning("Row skipped: %s", error)

    def _prepare(self, path: Path, line: Line) -> Work:
        row = parse_row(path, line)
        try:
            rendered = self.conversation.first_prompt(row)
            self.conversation.check(row)
        except UserError as error:
            raise UserError(f"{path}:{line.number}: {error}") from None
        return Work(line, row, self.conversation.requests.encode(rendered))

    def _note_edited(self, line: Line) -> None:
        self.edited += 1
        if self.edited <= _SHOWN:
            _log.warning(
                "%s:%d has changed since it was answered; it is done again.",
                self.config.input_path,
                line.number,
            )
