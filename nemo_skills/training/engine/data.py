"""Rows and packs to micro-batches: padding-free sequences of documents, in an order that can be resumed."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from nemo_skills.core.errors import UserError
from nemo_skills.training.config import DatasetConfig
from nemo_skills.training.engine.attention import Layout, own_part
from nemo_skills.training.engine.loss import IGNORED
from nemo_skills.training.engine.parallel import Topology
from nemo_skills.training.engine.samples import Document, Samples, document, open_samples

__all__ = ["Batches", "MicroBatch", "collate", "document", "open_samples"]


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
        """Begin with the first epoch.

        Raises:
            UserError: there are no rows.
        """
        if not len(samples):
            raise UserError(f"{', '.join(config.files)}: there are no rows.")
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
        return self._config.batch_size(self._topology.dp)

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
