"""From a plan and a store of tokens to the rows of the packed arrays, some packs at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from nemo_skills.training.packed_files import PADDING, PackRows, PackShape
from nemo_skills.training.packing import Plan
from nemo_skills.training.packing_tokens import TokenStore

_BLOCK_TOKENS = 1 << 22
Ints = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class RowFiller:
    """Lays the sequences of each pack end to end."""

    plan: Plan
    store: TokenStore
    places: Ints
    """How many places each sequence takes: its inputs, padded, and one more."""
    filler: int
    """Token to pad sequences with."""

    @cached_property
    def shape(self) -> PackShape:
        """The size of the arrays: a row is as wide as the fullest pack."""
        sums = np.add.reduceat(self.places[self.plan.order], self.plan.bounds[:-1])
        most = int(np.diff(self.plan.bounds).max())
        return PackShape(packs=len(self.plan), width=int(sums.max()), sequences=most)

    def rows(self) -> Iterator[PackRows]:
        """Yield all packs, some at a time."""
        shape = self.shape
        step = max(1, _BLOCK_TOKENS // shape.width)
        for first in range(0, shape.packs, step):
            yield self._fill(first, min(first + step, shape.packs), shape)

    def _fill(self, first: int, last: int, shape: PackShape) -> PackRows:
        bounds = self.plan.bounds[first : last + 1]
        chosen = self.plan.order[bounds[0] : bounds[-1]]
        sizes = np.diff(bounds)
        row = np.repeat(np.arange(last - first), sizes)
        column = np.arange(len(chosen)) - np.repeat(bounds[:-1] - bounds[0], sizes)
        places = self.places[chosen]
        # where each sequence begins in its row: all places before it, less those of earlier rows
        before = np.cumsum(places) - places
        start = before - np.repeat(before[np.flatnonzero(column == 0)], sizes)
        starts = np.full((last - first, shape.sequences), PADDING, np.int32)
        starts[row, column] = start
        ids = np.full((last - first, shape.width), PADDING, np.int32)
        mask = np.ones((last - first, shape.width), bool)
        taken = self._write(ids, mask, row * shape.width + start, chosen)
        assert taken == int(self.store.lengths[chosen].sum())
        return PackRows(ids, mask, starts)

    def _write(self, ids: Ints, mask: npt.NDArray[np.bool_], begin: Ints, chosen: Ints) -> int:
        """Copy sequences to where they begin in the arrays, taken as one line."""
        places, lengths = self.places[chosen], self.store.lengths[chosen].astype(np.int64)
        flat_ids, flat_mask = ids.reshape(-1), mask.reshape(-1)
        target = _runs(begin, places)
        flat_ids[target] = self.filler
        flat_mask[target] = False
        values = self.store.values[_runs(self.store.starts[chosen], lengths)]
        target = _runs(begin, lengths)
        flat_ids[target] = values >> 1
        # the mask says at each place whether the next token is learned; nothing learns the first one
        learned = (values & 1).astype(bool)
        learned[np.cumsum(lengths) - lengths] = False
        flat_mask[target[learned] - 1] = True
        return len(values)


def _runs(starts: Ints, lengths: Ints) -> Ints:
    """Return the numbers from each start on, so many as its length."""
    total = int(lengths.sum())
    found: Ints = np.arange(total) + np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)
    return found
