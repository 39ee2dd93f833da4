"""The tokens of all rows, on disk: made in parallel, read at random."""

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from nemo_skills.core.errors import UserError
from nemo_skills.core.jsonl import BadRowError, Block, InputFiles, disk_errors, parse_row
from nemo_skills.core.log import get_logger
from nemo_skills.training.data_preparation_utils.pool import run_tasks
from nemo_skills.training.data_preparation_utils.progress import progress
from nemo_skills.training.packing_info import Counts
from nemo_skills.training.tokenise import Example, tokenise

_log = get_logger(__name__)
_BUFFER = 1 << 20
_SHOWN = 5


class _Tokens(NamedTuple):
    """What became of some rows."""

    values: npt.NDArray[np.int32]
    """Tokens of all sequences, each times two, and one more where it is learned."""
    lengths: npt.NDArray[np.int32]
    counts: Counts
    problems: list[str]
    nbytes: int
    """Of the input."""


@dataclass(frozen=True)
class Tokeniser:
    """Turns rows into sequences that are not too long."""

    tokenizer: Any
    max_tokens: int
    long_sequences: Literal["truncate", "drop", "error"]
    skip_bad_rows: bool

    def __call__(self, block: Block) -> _Tokens:
        """Tokenise neighbouring rows.

        Raises:
            UserError: a row is no good, or too long and that is not allowed.
        """
        done = list[Example]()
        problems = list[str]()
        tally = {
            "rows": len(block.rows),
            "skipped": 0,
            "dropped_long": 0,
            "nothing_to_learn": 0,
            "truncated": 0,
        }
        for index in range(len(block.rows)):
            try:
                example = self._example(block, index)
            except UserError as error:
                if not self.skip_bad_rows:
                    raise
                tally["skipped"] += 1
                problems.append(str(error))
                continue
            long = len(example.input_ids) > self.max_tokens
            if long and self.long_sequences == "error":
                raise UserError(
                    f"{block.line(index).place}: the row has {len(example.input_ids)} tokens,"
                    f" {self.max_tokens} are allowed (model.data.train_ds.max_seq_length);"
                    " see long_sequences."
                )
            kept = example.cut(self.max_tokens)
            if long and self.long_sequences == "drop":
                tally["dropped_long"] += 1
            elif not kept.trains:
                tally["nothing_to_learn"] += 1
            else:
                tally["truncated"] += long
                done.append(kept)
        return _gather(done, tally, problems, sum(map(len, block.rows)))

    def _example(self, block: Block, index: int) -> Example:
        line = block.line(index)
        row = parse_row(block.path, line)
        try:
            return tokenise(row, self.tokenizer)
        except UserError as error:
            raise BadRowError(f"{line.place}: {error}") from None


def _gather(done: list[Example], tally: dict[str, int], problems: list[str], nbytes: int) -> _Tokens:
    lengths = np.fromiter((len(example.input_ids) for example in done), np.int32, len(done))
    values = np.empty(int(lengths.sum()), np.int32)
    start = trained = 0
    for example in done:
        end = start + len(example.input_ids)
        mask = np.array(example.loss_mask, np.int32)
        values[start:end] = np.array(example.input_ids, np.int32) * 2 + mask
        trained += int(mask[1:].sum())
        start = end
    sums = {"sequences": len(done), "tokens": len(values) - len(done), "trained_tokens": trained}
    return _Tokens(values, lengths, Counts(**tally, **sums), problems, nbytes)


class TokenStore:
    """Sequences on disk; see `open_store`."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._parts: list[npt.NDArray[np.int32]] = []
        self.lengths: npt.NDArray[np.int32] = np.empty(0, np.int32)
        """Tokens of each sequence."""
        self.starts: npt.NDArray[np.int64] = np.empty(0, np.int64)
        """Where each sequence begins in `values`."""
        self.values: npt.NDArray[np.int32] = np.empty(0, np.int32)
        """Tokens of all sequences, each times two, and one more where it is learned."""

    def append(self, values: npt.NDArray[np.int32], lengths: npt.NDArray[np.int32]) -> None:
        """Add sequences."""
        self._parts.append(lengths)
        self._file.write(values.data.cast("B"))

    def finish(self) -> None:
        """Make what was added readable."""
        self._file.flush()
        self.lengths = np.concatenate([self.lengths, *self._parts])
        self._parts.clear()
        self.starts = np.concatenate(([0], np.cumsum(self.lengths, dtype=np.int64)))[:-1]
        if len(self.lengths):
            self.values = np.memmap(self._file, np.int32, "r")


@contextmanager
def open_store(folder: Path) -> Iterator[TokenStore]:
    """Open a store whose file has no name: it is gone when the program is, however that ends."""
    with disk_errors(folder, "The tokens of all rows are kept there until they are packed."):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, buffering=_BUFFER) as file:
            yield TokenStore(file)  # type: ignore[arg-type]


def tokenise_files(inputs: InputFiles, tokeniser: Tokeniser, processes: int, store: TokenStore) -> Counts:
    """Put the tokens of all rows into a store, in the order of the rows.

    Raises:
        UserError: a row is no good, or the disk is full.
    """
    # the processes are ours; threads of the tokenizer's on top would only get in their way
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    total = max(inputs.text_size(), 1)
    counts, done, shown_problems = list[Counts](), 0, 0
    with progress("Tokenising") as shown:
        for tokens in run_tasks(tokeniser, inputs.blocks(), processes):
            store.append(tokens.values, tokens.lengths)
            counts.append(tokens.counts)
            for problem in tokens.problems[: _SHOWN - shown_problems]:
                _log.warning("Skipped: %s", problem)
                shown_problems += 1
            done += tokens.nbytes
            shown.advance(tokens.counts.rows, min(done / total, 1.0))
    store.finish()
    return Counts.sum(counts)


def lengths_line(lengths: Iterable[int]) -> str:
    """Describe how long sequences are."""
    array = np.fromiter(lengths, np.int64)
    middle, high = np.percentile(array, (50, 95)).astype(int)
    return f"{array.min()} to {array.max()} tokens, median {middle}, 95 % up to {high}"
