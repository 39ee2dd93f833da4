"""Rows and packs to micro-batches: padding-free sequences of documents, in an order that can be resumed."""

import mmap
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch

from nemo_skills.core.errors import UserError
from nemo_skills.core.jsonl import Line, iter_lines, parse_row
from nemo_skills.training.config import DatasetConfig
from nemo_skills.training.engine.attention import Layout, own_part
from nemo_skills.training.engine.loss import IGNORED
from nemo_skills.training.engine.parallel import Topology
from nemo_skills.training.tokenise import Example, tokenise

Tokens = npt.NDArray[np.int64]
_COMPRESSED = (".gz", ".zst")


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


class RowSamples:
    """Rows of JSONL files, tokenised when they are needed."""

    def __init__(
        self, paths: Sequence[Path], tokenise_row: TokeniseRow, tokenizer: Any, max_length: int
    ) -> None:
        self._files = [_LineIndex(path) for path in paths]
        self._ends = np.cumsum([len(file) for file in self._files])
        self._tokenise, self._tokenizer = tokenise_row, tokenizer
        self._max_length = max_length

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Sequence[Document]:
        which = int(np.searchsorted(self._ends, index, side="right"))
        line = self._files[which].line(index - (int(self._ends[which - 1]) if which else 0))
        try:
            examples = self._tokenise(parse_row(line.path, line), self._tokenizer)
        except UserError as error:
            text = str(error)
            raise UserError(text if text.startswith(str(line.path)) else f"{line.place}: {text}") from None
        if any(len(example.input_ids) < 2 for example in examples):
            raise UserError(f"{line.place}: a row needs at least two tokens.")
        return tuple(document(ids, mask, self._max_length) for ids, mask in examples)


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
            ends = np.append(np.flatnonzero(text == ord("\n")), len(text))
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


class PackedSamples:
    """Packs of a packed file, memory-mapped."""

    def __init__(self, paths: Sequence[Path]) -> None:
        from nemo_skills.training.packed_files import PackedReader

        self._packs = [PackedReader(path) for path in paths]
        self._ends = np.cumsum([len(packs) for packs in self._packs])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Sequence[Document]:
        which = int(np.searchsorted(self._ends, index, side="right"))
        pack = self._packs[which][index - (int(self._ends[which - 1]) if which else 0)]
        return tuple(document(ids, mask) for ids, mask in pack)


def one_document(row: Mapping[str, Any], tokenizer: Any) -> Sequence[Example]:
    """Return the only document of a row of supervised fine-tuning."""
    return (tokenise(row, tokenizer),)


def open_samples(config: DatasetConfig, tokenizer: Any, tokenise_row: TokeniseRow = one_document) -> Samples:
    """Open the files of a dataset.

    Raises:
        UserError: a file is missing, or packed and not said to be so.
    """
    if config.packed_sequence:
        return PackedSamples([Path(name).expanduser() for name in config.files])
    from nemo_skills.core.jsonl import InputFiles

    for name in config.files:
        if name.endswith(".npy"):
            raise UserError(f"{name} is a packed file: set ++model.data.train_ds.packed_sequence=True.")
    paths = [path for name in config.files for path in InputFiles.find(name).paths]
    return RowSamples(paths, tokenise_row, tokenizer, config.max_seq_length)


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """What a process computes at once: documents end to end, of which it may have a part."""

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    targets: torch.Tensor
    layout: Layout

    @property
    def weight(self) -> float:
        """How many tokens are trained: the mean loss of a step is over these."""
        return float((self.targets != IGNORED).sum())

    @property
    def tokens(self) -> int:
        """How many tokens go through the model."""
        return int(self.input_ids.numel())

    def inputs(self, device: torch.device) -> dict[str, Any]:
        """Return the arguments of the model."""
        longest = max(self.layout.lengths)
        ends = torch.tensor([0, *self.layout.lengths], dtype=torch.int32, device=device).cumsum(0).int()
        return {
            "input_ids": self.input_ids.to(device),
            "position_ids": self.position_ids.to(device),
            "use_cache": False,
            "document_layout": self.layout,
            # the names of flash attention for the same
            "cu_seq_lens_q": ends,
            "cu_seq_lens_k": ends,
            "max_length_q": longest,
            "max_length_k": longest,
        }


def collate(documents: Sequence[Document], topology: Topology) -> MicroBatch:
    """Lay documents end to end; with context parallelism, return this process's part of them."""
    lengths = [len(d.input_ids) for d in documents]
    padding = -sum(lengths) % (2 * topology.cp) if topology.cp > 1 else 0
    if padding:
        documents = [*documents, Document(np.zeros(padding, np.int64), np.full(padding, IGNORED))]
        lengths.append(padding)
    positions = np.concatenate([np.arange(length) for length in lengths])
    rows = (np.concatenate([d.input_ids for d in documents]), positions)
    input_ids, position_ids = (own_part(torch.from_numpy(row)[None], topology) for row in rows)
    targets = own_part(torch.from_numpy(np.concatenate([d.targets for d in documents])), topology)
    layout = Layout.shared(lengths, topology)
    return MicroBatch(input_ids=input_ids, position_ids=position_ids, targets=targets, layout=layout)


class Batches:
    """The steps of a run: which samples each process computes is a function of seed and samples consumed."""

    def __init__(self, samples: Samples, config: DatasetConfig, topology: Topology, seed: int) -> None:
        """Check that the batch can be divided.

        Raises:
            UserError: there are no rows, or the sizes do not fit.
        """
        if not len(samples):
            raise UserError(f"{', '.join(config.files)}: there are no rows.")
        check_batch(config, topology.dp)
        self._samples = samples
        self._config = config
        self._topology = topology
        self._seed = seed
        self._order: tuple[int, npt.NDArray[np.int64]] = (-1, np.empty(0, np.int64))

    @property
    def rows(self) -> int:
        """Samples of one epoch."""
        return len(self._samples)

    @property
    def global_size(self) -> int:
        """Samples of one step."""
        return self._config.global_batch_size

    def indices(self, consumed: int, count: int) -> list[int]:
        """Return the samples that follow after `consumed` ones, epoch after epoch without a gap."""
        return [self._index(position) for position in range(consumed, consumed + count)]

    def _index(self, position: int) -> int:
        epoch, offset = divmod(position, self.rows)
        if not self._config.shuffle:
            return offset
        if self._order[0] != epoch:
            self._order = (epoch, np.random.default_rng((self._seed, epoch)).permutation(self.rows))
        return int(self._order[1][offset])

    def step(self, consumed: int, count: int | None = None) -> list[MicroBatch]:
        """Return this process's micro-batches of the step that begins after `consumed` samples.

        Args:
            consumed: samples seen before.
            count: samples of the step; by default the global batch size.
        """
        indices = self.indices(consumed, self.global_size if count is None else count)
        share = -(-len(indices) // self._topology.dp)
        mine = indices[self._topology.dp_rank * share :][:share]
        size = self._config.micro_batch_size
        micro = [mine[i : i + size] for i in range(0, max(share, 1), size)]
        return [self.micro_batch(chosen) for chosen in micro]

    def micro_batch(self, indices: Sequence[int]) -> MicroBatch:
        """Return what is made of some samples, perhaps of none."""
        documents = list(chain.from_iterable(self._samples[i] for i in indices))
        if not documents:
            # the last batch of a validation may have no row for this process, which must compute all the same
            filler = self._samples[0][0]
            documents = [Document(filler.input_ids[:2], np.full(len(filler.input_ids[:2]), IGNORED))]
        return collate(documents, self._topology)

    def steps(self, consumed: int, stop: int) -> Iterator[list[MicroBatch]]:
        """Yield the steps from `consumed` samples up to `stop`, each prepared during the one before."""
        starts = range(consumed, stop, self.global_size)
        with ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(self.step, starts[0]) if starts else None
            for following in [*starts[1:], None]:
                if ahead is None:
                    return
                ready = ahead.result()
                ahead = None if following is None else pool.submit(self.step, following)
                yield ready


def check_batch(config: DatasetConfig, dp: int) -> None:
    """Check that each process gets the same number of whole micro-batches.

    Raises:
        UserError: with the nearest values that fit.
    """
    unit = config.micro_batch_size * dp
    size = config.global_batch_size
    if size % unit:
        below, above = size // unit * unit, -(-size // unit) * unit
        nearest = f"{below} or {above}" if below else str(above)
        raise UserError(
            f"global_batch_size={size} is not a multiple of micro_batch_size={config.micro_batch_size} "
            f"x {dp} data-parallel processes; the nearest values that are: {nearest}."
        )
