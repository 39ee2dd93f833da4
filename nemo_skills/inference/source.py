"""The rows of the input that are still to do, one at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from nemo_skills.core.errors import UserError
from nemo_skills.core.jsonl import Block, InputFiles, Journal, Line, Match, parse_row, row_checks
from nemo_skills.core.log import get_logger
from nemo_skills.inference.config import GenerateConfig
from nemo_skills.inference.conversation import Conversation
from nemo_skills.inference.survey import Span

_SHOWN = 5
_log = get_logger(__name__)


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
    inputs: InputFiles
    journal: Journal
    span: Span
    changed: bool = False
    """Whether every row that is to do is one that changed since the output was complete."""
    skipped: int = 0
    """Bad rows left out (`on_bad_row=skip`)."""
    edited: int = 0
    """Rows whose text has changed since an earlier run answered them."""

    def __iter__(self) -> Iterator[Work]:
        """Yield rows to do; several workers may share one iterator."""
        fresh = self.journal.empty
        for block in self.inputs.blocks(*self.span):
            match = Match(range(len(block.rows)), ()) if fresh else self._match(block)
            for index in match.todo:
                try:
                    yield self._prepare(block.line(index))
                except UserError as error:
                    if self.config.on_bad_row == "error":
                        raise
                    self.skipped += 1
                    if self.skipped <= _SHOWN:
                        _log.warning("Row skipped: %s", error)

    def _match(self, block: Block) -> Match:
        match = self.journal.match(block.position, row_checks(block.rows))
        for index in match.todo if self.changed else match.edited:
            self.edited += 1
            if self.edited <= _SHOWN:
                _log.warning("%s has changed since it was answered, or is new.", block.line(index).place)
        return match

    def _prepare(self, line: Line) -> Work:
        row = parse_row(line.path, line)
        try:
            rendered = self.conversation.first_prompt(row)
            self.conversation.check(row)
        except UserError as error:
            raise UserError(f"{line.place}: {error}") from None
        return Work(line, row, self.conversation.requests.encode(rendered))
