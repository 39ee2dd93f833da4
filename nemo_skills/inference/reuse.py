"""Finds the answers of an earlier run again when the input has changed.

An answer is known by the key of the row that it answers, so it is found wherever the row is now. Each answer
is used once: rows with the same text keep the different answers that they were given. Large inputs are
handled in parts, by their keys, so that memory stays bounded.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from nemo_skills.core.errors import UserError
from nemo_skills.core.jsonl import InputFiles, Journal, KeyTable, iter_lines, row_key
from nemo_skills.inference.done import DoneMark, read_keys
from nemo_skills.inference.survey import Span

_PART_ROWS = 1 << 20


class Earlier(NamedTuple):
    """A finished output and its mark."""

    output: Path
    done: Path
    mark: DoneMark


@dataclass(kw_only=True)
class Reuse:
    """Gives rows of the input the answers that exist, once the journal was compared with all of them."""

    inputs: InputFiles
    span: Span
    journal: Journal

    def from_journal(self) -> int:
        """Move answers in the journal to the rows that have their texts now; return how many."""
        parts = self.journal.repair.records // _PART_ROWS + 1
        moved = 0
        self.journal.drop_stale()
        for part, spare in enumerate(self.journal.spare(parts)):
            table = KeyTable(spare)
            if not table:
                continue
            for position, key in self._missing():
                if key % parts == part and (offset := table.take(key)) is not None:
                    self.journal.move(position, key, offset)
                    moved += 1
        return moved

    def from_output(self, earlier: Earlier, *, of_all_chunks: bool) -> int:
        """Take over rows of a finished output; return how many.

        Raises:
            UserError: it is not known any more which row of the output answers which text.
        """
        if earlier.mark.output is None or not earlier.mark.output.fits(earlier.output):
            raise UserError(
                f"The input has changed since {earlier.output} was finished, and that file has changed too:"
                " its rows cannot be matched with the input. Move it away, or do all rows again with"
                " ++skip_filled=false."
            )
        parts = max(earlier.mark.rows, self.span.size) // _PART_ROWS + 1
        taken = 0
        for part in range(parts):
            table = KeyTable((key, position) for position, key in self._missing() if key % parts == part)
            # other chunks take the answers to the rows of the same text before this one's
            passed = Counter(self._keys_before(table)) if of_all_chunks else Counter()
            rows = zip(read_keys(earlier.done), iter_lines(earlier.output), strict=True)
            for key, line in rows:
                if key % parts != part:
                    continue
                if passed[key]:
                    passed[key] -= 1
                elif (position := table.take(key)) is not None:
                    self.journal.restore(position, key, line.raw)
                    taken += 1
                elif not of_all_chunks:  # the output will be replaced, but its row may come back
                    self.journal.keep(key, line.raw)
        return taken

    def _missing(self) -> Iterator[tuple[int, int]]:
        """Yield position and key of the rows that are not finished."""
        for block in self.inputs.blocks(*self.span):
            for position, raw in enumerate(block.rows, block.position):
                if not self.journal.is_done(position):
                    yield position, row_key(raw)

    def _keys_before(self, table: KeyTable) -> Iterator[int]:
        for block in self.inputs.blocks(0, self.span.start):
            yield from filter(table.__contains__, map(row_key, block.rows))
