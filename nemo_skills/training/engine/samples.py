"""Rows and packs on disk: what is shuffled and counted, as documents of tokens."""

import mmap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from nemo_skills.core.errors import UserError
from nemo_skills.core.jsonl import Line, iter_lines, parse_row
from nemo_skills.core.log import get_logger
from nemo_skills.training.config import DatasetConfig
from nemo_skills.training.engine.loss import IGNORED
from nemo_skills.training.row_files import find_rows, once, refuse_packed
from nemo_skills.training.tokenise import Example, tokenise

if TYPE_CHECKING:
    from nemo_skills.training.packed_files import PackedReader

LOG = get_logger(__name__)

Tokens = npt.NDArray[np.int64]
_COMPRESSED = (".gz", ".zst")
_PIECE = 1 << 24


class Document(NamedTuple):
    """Tokens that see each other, and for each the token that should come next, or `IGNORED`."""

    input_ids: Tokens
    targets: Tokens


def document(input_ids: npt.ArrayLike, loss_mask: npt.ArrayLike, limit: int | None = None) -> Document:
    """Return the document of some tokens, of which those in the mask are to be learned."""
    ids = np.asarray(input_ids, dtype=np.int64)[:limit]
    learned = np.asarray(loss_mask, dtype=bool)[:limit]
    return Document(ids[:-1], np.where(learned[1:], ids[1:], IGNORED))


class Samples(Protocol):
    """What is shuffled and counted: rows, or packs of rows."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sequence[Document]: ...


TokeniseRow = Callable[[Mapping[str, Any], Any], Sequence[Example]]
"""Makes documents of a row, with a tokenizer."""
CheckRow = Callable[[Mapping[str, Any], Any], None]
"""Raises a `UserError` for a row that is none to make documents of."""


class RowSamples:
    """Rows of JSONL files, tokenised when they are needed."""

    def __init__(
        self, paths: Sequence[Path], tokenise_row: TokeniseRow, tokenizer: Any, max_length: int
    ) -> None:
        self._files = [_LineIndex(path) for path in paths]
        self._ends = np.cumsum([len(file) for file in self._files])
        self._tokenise_row, self._tokenizer = tokenise_row, tokenizer
        self._max_length = max_length
        self._told = False

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Sequence[Document]:
        line = self._line(index)
        examples = self._tokenise(line, parse_row(line.path, line))
        longest = max(len(example.input_ids) for example in examples)
        if longest > self._max_length and not self._told:
            self._told = True
            LOG.warning("%s: %s tokens are cut to %s; other rows, too", line.place, longest, self._max_length)
        return tuple(document(ids, mask, self._max_length) for ids, mask in examples)

    def check(self, check_row: CheckRow) -> None:
        """Look at every row without tokenising it: a bad one should not end a training after hours.

        Raises:
            UserError: a line is no row to train on.
        """
        for index in range(len(self)):
            line = self._line(index)
            with _place_named(line):
                check_row(parse_row(line.path, line), self._tokenizer)

    def _line(self, index: int) -> Line:
        which = int(np.searchsorted(self._ends, index, side="right"))
        return self._files[which].line(index - (int(self._ends[which - 1]) if which else 0))

    def _tokenise(self, line: Line, row: Mapping[str, Any]) -> Sequence[Example]:
        with _place_named(line):
            examples = self._tokenise_row(row, self._tokenizer)
        if any(len(example.input_ids) < 2 for example in examples):
            raise UserError(f"{line.place}: a row needs at least two tokens.")
        return examples


@contextmanager
def _place_named(line: Line) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        text = str(error)
        raise UserError(text if text.startswith(str(line.path)) else f"{line.place}: {text}") from None


class _LineIndex:
    """Random access to the lines of a file; a compressed one is held in memory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held: list[Line] = []
        self._starts = self._numbers = np.empty(0, np.int64)
        if path.suffix in _COMPRESSED:
            self._held = list(iter_lines(path))
        elif path.stat().st_size:
            with path.open("rb") as file:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            text = np.frombuffer(self._data, np.uint8)
            ends = np.append(_newlines(text), len(text))
            starts = np.concatenate(([0], ends[:-1] + 1))
            # blank lines are no rows; what else may be blank shows when it is read
            self._numbers = np.flatnonzero(ends - starts > 1)
            self._starts, self._ends = starts[self._numbers], ends[self._numbers]

    def __len__(self) -> int:
        return len(self._held) or len(self._starts)

    def line(self, index: int) -> Line:
        if self._held:
            return self._held[index]
        raw = self._data[self._starts[index] : self._ends[index]].strip()
        return Line(index, int(self._numbers[index]) + 1, raw, self._path)


def _newlines(text: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Return where lines end, going through a large file in pieces: a comparison takes as much memory."""
    pieces = range(0, len(text), _PIECE)
    return np.concatenate([np.flatnonzero(text[at : at + _PIECE] == ord("\n")) + at for at in pieces])


class PackedSamples:
    """Packs of packed files, memory-mapped."""

    def __init__(self, packs: "Sequence[PackedReader]") -> None:
        self._packs = packs
        self._ends = np.cumsum([len(part) for part in packs])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Sequence[Document]:
        which = int(np.searchsorted(self._ends, index, side="right"))
        pack = self._packs[which][index - (int(self._ends[which - 1]) if which else 0)]
        return tuple(document(ids, mask) for ids, mask in pack)


def one_document(row: Mapping[str, Any], tokenizer: Any) -> Sequence[Example]:
    """Return the only document of a row of supervised fine-tuning."""
    return (tokenise(row, tokenizer),)


def open_samples(
    config: DatasetConfig,
    tokenizer: Any,
    tokenise_row: TokeniseRow = one_document,
    key: str = "model.data.train_ds",
) -> Samples:
    """Open the files of a dataset, which is set under `key`.

    Raises:
        UserError: a file is missing, packed and not said to be so, or packed with another tokenizer.
    """
    if config.packed_sequence:
        from nemo_skills.training.packed_files import PackedReader, packed_prefix

        packs = [PackedReader(prefix) for prefix in once(map(packed_prefix, config.files))]
        _check_vocabulary(packs, tokenizer)
        return PackedSamples(packs)
    refuse_packed(config.files, key)
    paths = find_rows(config.files).paths
    return RowSamples(paths, tokenise_row, tokenizer, config.max_seq_length)


def _check_vocabulary(packs: "Sequence[PackedReader]", tokenizer: Any) -> None:
    """The same numbers must mean the same words: a wrong tokenizer would train the model on nonsense."""
    from nemo_skills.training.packing_info import vocabulary_of

    known, size = vocabulary_of(tokenizer)
    for part in packs:
        info = part.info
        if info is None:
            LOG.warning("%s.json is missing: whether the packs suit the model is not checked", part.prefix)
        elif (info.vocabulary, info.vocabulary_size) != (known, size):
            raise UserError(
                f"{part.prefix} was packed with another tokenizer than the model's:"
                f" {info.tokenizer} (vocabulary {info.vocabulary[:8]} of {info.vocabulary_size} tokens), not"
                f" {tokenizer.name_or_path} (vocabulary {known[:8]} of {size}). Pack the rows again with"
                " the model's tokenizer."
            )
