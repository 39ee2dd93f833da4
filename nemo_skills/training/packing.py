"""Which sequences share a pack: planning, from nothing but their lengths.

Sequences of the same length are interchangeable, and so are packs with the same contents. All algorithms but
the one in random order therefore fill whole groups of equal packs at once: their time depends on how many
lengths differ, hardly on how many sequences there are.
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from nemo_skills.training.packing_exact import ExactFill
from nemo_skills.training.packing_groups import BestFit, FirstFit, Group, RoomTree

Algorithm = Literal["fewest_packs", "best_fit_decreasing", "first_fit_decreasing", "first_fit_shuffle"]
Ints = npt.NDArray[np.int64]
_RADIX_LIMIT = 1 << 16
_WORTHWHILE = 1.0002
"""Where that many times the fewest packs there can be are needed, more is tried."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which sequences go into which pack."""

    order: npt.NDArray[np.int32]
    """Numbers of the sequences, pack after pack."""
    bounds: Ints
    """Pack `i` holds `order[bounds[i]:bounds[i + 1]]`."""
    capacity: int
    """Most tokens of a pack."""
    tokens: int
    """Of all sequences."""

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def pack(self, index: int) -> npt.NDArray[np.int32]:
        """Return the numbers of the sequences of one pack."""
        return self.order[self.bounds[index] : self.bounds[index + 1]]

    @property
    def efficiency(self) -> float:
        """Which share of the packs is filled."""
        return self.tokens / (self.capacity * len(self)) if len(self) else 1.0

    @property
    def sequences_per_pack(self) -> float:
        """The mean number."""
        return len(self.order) / len(self) if len(self) else 0.0

    def shuffled(self, seed: int) -> "Plan":
        """Return the same packs in random order, so that training does not see long sequences first."""
        chosen = np.random.default_rng(seed).permutation(len(self))
        sizes = np.diff(self.bounds)[chosen]
        bounds = _bounds(sizes)
        places = np.arange(len(self.order)) + np.repeat(self.bounds[:-1][chosen] - bounds[:-1], sizes)
        return Plan(order=self.order[places], bounds=bounds, capacity=self.capacity, tokens=self.tokens)


def plan_packs(
    lengths: npt.ArrayLike,
    capacity: int,
    algorithm: Algorithm = "fewest_packs",
    seed: int = 0,
) -> Plan:
    """Distribute sequences over packs.

    `fewest_packs` is the best of `best_fit_decreasing`, `first_fit_decreasing` and exact filling; a later one
    is tried where those before it leave something to gain. None is better than the others on all lengths.

    Args:
        lengths: How many tokens each sequence takes, from 1 to `capacity`.
        capacity: Most tokens of a pack.
        algorithm: By which rule. `first_fit_shuffle` takes the sequences in random order.
        seed: Of whatever is drawn by lot: the order of sequences of equal length, and of packs.

    Raises:
        ValueError: a sequence is empty or longer than a pack.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    if sizes.size and (sizes.min() < 1 or sizes.max() > capacity):
        raise ValueError(f"lengths must be from 1 to {capacity}, not {sizes.min()} to {sizes.max()}")
    if algorithm == "first_fit_shuffle":
        plan = _first_fit(sizes, capacity, np.random.default_rng(seed).permutation(len(sizes)))
    else:
        counts = np.bincount(sizes, minlength=1)
        plan = _assign(sizes, counts, capacity, _packing(counts, capacity, algorithm, seed), seed)
    return plan.shuffled(seed)


class _Filling(NamedTuple):
    """So many sequences of one length more in each pack of a group."""

    parent: int
    """The filling before this one; -1 is none."""
    length: int
    each: int


class _Groups(Protocol):
    """Packs that are not full."""

    def take(self, length: int) -> Group | None:
        """Take out the next group that has room for a sequence of this length."""

    def put(self, group: Group) -> None:
        """Add a group."""


class _Packing(NamedTuple):
    """How many packs are filled in the same way, for each way."""

    fillings: list[_Filling]
    done: list[tuple[int, int]]
    """The last filling of a group of packs, and how many packs these are."""

    @property
    def packs(self) -> int:
        return sum(packs for _, packs in self.done)


def _packing(counts: Ints, capacity: int, algorithm: Algorithm, seed: int) -> _Packing:
    if algorithm == "best_fit_decreasing":
        return _fill(counts, capacity, BestFit(capacity))
    total = int(counts @ np.arange(len(counts)))
    if algorithm == "first_fit_decreasing":
        # an opened pack is at least half full before the next but one is opened
        return _fill(counts, capacity, FirstFit(min(int(counts.sum()), 2 * total // capacity + 2)))
    best = _packing(counts, capacity, "best_fit_decreasing", seed)
    fewest = -(-total // capacity)
    if best.packs > fewest:
        best = min(best, _packing(counts, capacity, "first_fit_decreasing", seed), key=lambda p: p.packs)
    if best.packs > fewest * _WORTHWHILE:
        best = min(best, _exact(counts, capacity, seed), key=lambda p: p.packs)
    return best


def _exact(counts: Ints, capacity: int, seed: int) -> _Packing:
    """Fill as many packs as possible exactly, and the others by best fit."""
    filler = ExactFill(counts, capacity, seed)
    fillings: list[_Filling] = []
    done: list[tuple[int, int]] = []
    for each, packs in filler.patterns():
        before = -1
        for length, number in each.items():
            fillings.append(_Filling(before, length, number))
            before = len(fillings) - 1
        done.append((before, packs))
    rest = _packing(filler.left, capacity, "best_fit_decreasing", seed)
    moved = len(fillings)
    fillings += [f._replace(parent=f.parent + moved if f.parent >= 0 else -1) for f in rest.fillings]
    return _Packing(fillings, done + [(filling + moved, packs) for filling, packs in rest.done])


def _fill(counts: Ints, capacity: int, groups: _Groups) -> _Packing:
    """Put the longest sequences first; `groups` decides where."""
    lengths = np.flatnonzero(counts)
    shortest = int(lengths[0]) if len(lengths) else 0
    fillings: list[_Filling] = []
    done: list[tuple[int, int]] = []
    opened = 0

    def add(group: Group) -> None:
        if group.packs and group.room < shortest:
            done.append((group.filling, group.packs))
        elif group.packs:
            groups.put(group)

    for length in lengths[::-1].tolist():
        left = int(counts[length])
        while left:
            group = groups.take(length)
            if group is None:
                group = Group(capacity, -(-left // (capacity // length)), -1, opened)
                opened += group.packs
            room, packs, before, place = group
            each = room // length
            full, rest = min(packs, left // each), 0
            left -= full * each
            if full:
                fillings.append(_Filling(before, length, each))
                add(Group(room - each * length, full, len(fillings) - 1, place))
            if full < packs and left:
                fillings.append(_Filling(before, length, left))
                add(Group(room - left * length, 1, len(fillings) - 1, place + full))
                left, rest = 0, 1
            add(Group(room, packs - full - rest, before, place + full + rest))
    done += [(group.filling, group.packs) for group in _remaining(groups)]
    return _Packing(fillings, done)


def _remaining(groups: _Groups) -> Iterable[Group]:
    while (group := groups.take(1)) is not None:
        yield group


def _assign(sizes: Ints, counts: Ints, capacity: int, packing: _Packing, seed: int) -> Plan:
    """Name the sequences that fill the packs, by lot among those of equal length."""
    chains = [_chain(packing.fillings, filling) for filling, _ in packing.done]
    used = [filling for chain in chains for filling in chain]
    packs = np.array([packs for _, packs in packing.done], np.int64)
    links = np.array([len(chain) for chain in chains], np.int64)
    length = np.array([filling.length for filling in used], np.int64)
    each = np.array([filling.each for filling in used], np.int64)
    per_pack = np.add.reduceat(each, _bounds(links)[:-1]) if len(links) else links
    # where each filling of a group begins in a pack of it, and in `order`
    group = np.repeat(np.arange(len(links)), links)
    within = _bounds(each)[:-1]
    within = within - within[_bounds(links)[:-1]][group] if len(links) else within
    start = _bounds(packs * per_pack)[:-1][group] + within
    taken = each * packs[group]
    ids = _by_length(sizes, seed)
    order = np.empty(len(sizes), np.int32)
    # fillings of the same length take one after the other from the sequences of that length
    sorted_links = np.argsort(length, kind="stable")
    source = np.empty(len(length), np.int64)
    source[sorted_links] = _bounds(taken[sorted_links])[:-1]
    for first in _slices(taken):
        rows = taken[first]
        which = np.arange(int(rows.sum())) - np.repeat(_bounds(rows)[:-1], rows)
        pack, rank = np.divmod(which, np.repeat(each[first], rows))
        target = np.repeat(start[first], rows) + pack * np.repeat(per_pack[group[first]], rows) + rank
        order[target] = ids[np.repeat(source[first], rows) + which]
    tokens = int(counts @ np.arange(len(counts)))
    return Plan(order=order, bounds=_bounds(np.repeat(per_pack, packs)), capacity=capacity, tokens=tokens)


def _chain(fillings: list[_Filling], last: int) -> list[_Filling]:
    """Return the fillings of a pack."""
    chain = []
    while last >= 0:
        chain.append(fillings[last])
        last = fillings[last].parent
    return chain


def _slices(sizes: Ints, limit: int = 1 << 20) -> Iterable[slice]:
    """Cut into parts with about `limit` items each."""
    cuts = np.flatnonzero(np.diff(np.cumsum(sizes) // limit)) + 1
    edges = [0, *cuts.tolist(), len(sizes)]
    return [slice(a, b) for a, b in itertools.pairwise(edges) if a < b]


def _by_length(sizes: Ints, seed: int) -> npt.NDArray[np.int32]:
    """Return the numbers of the sequences, shorter ones first, in random order within a length."""
    mixed = np.random.default_rng(seed).permutation(np.arange(len(sizes), dtype=np.int32))
    keys = sizes[mixed]
    # numpy sorts 16-bit numbers in linear time
    if keys.size and keys.max() < _RADIX_LIMIT:
        keys = keys.astype(np.uint16)
    found: npt.NDArray[np.int32] = mixed[np.argsort(keys, kind="stable")]
    return found


def _first_fit(sizes: Ints, capacity: int, sequences: Ints) -> Plan:
    """Put each sequence into the first pack that has room for it."""
    total = int(sizes.sum())
    rooms = RoomTree(min(len(sizes), 2 * total // capacity + 2), capacity)
    used = np.fromiter((rooms.place(size) for size in sizes[sequences].tolist()), np.int32, len(sizes))
    order = sequences[np.argsort(used, kind="stable")].astype(np.int32)
    return Plan(order=order, bounds=_bounds(np.bincount(used)), capacity=capacity, tokens=total)


def _bounds(sizes: Ints) -> Ints:
    """Return where parts of these sizes begin, and where the last one ends."""
    return np.concatenate((np.zeros(1, np.int64), np.cumsum(sizes, dtype=np.int64)))
