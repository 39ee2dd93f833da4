"""Packs that are filled to the last token, as long as there are sequences for it.

Best fit takes long sequences first and ends with lengths that no longer go well together. Here each pack
begins with the longest sequence there is, goes on with some drawn from all the others, so that these keep
their mixture, and ends with two whose lengths add up to just what is left.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.integer[Any]]
_TRIES = 20
_CLOSING = 2.2
"""So many times the mean length is left to the sequences that fill a pack up."""
_KINDS = 10_000
"""About how many different kinds of packs there shall be: alike ones are made together."""
_TAIL = 8
_STALE = 32
"""So many kinds of packs are made before it is counted again what is left to draw from."""


class Pattern(NamedTuple):
    """Packs with sequences of the same lengths."""

    each: dict[int, int]
    """How many sequences of each length."""
    packs: int


class ExactFill:
    """Fills packs; see `patterns`."""

    def __init__(self, counts: Ints, capacity: int, seed: int) -> None:
        """Take how many sequences there are of each length."""
        self.left = np.zeros(capacity + 1, np.int64)
        """How many sequences of each length are in no pack."""
        self.left[: len(counts)] = counts
        self._capacity = capacity
        self._random = np.random.default_rng(seed)
        self._tokens = int(self.left @ np.arange(capacity + 1))
        self._alike = max(1, self._tokens // (capacity * _KINDS))
        self._look()

    def _look(self) -> None:
        """See what there is to draw from."""
        self._lengths = np.flatnonzero(self.left)
        self._upto = np.cumsum(self.left[self._lengths])
        self._age = 0
        if len(self._lengths):
            self._shortest, self._longest = int(self._lengths[0]), int(self._lengths[-1])
            self._closing = _CLOSING * self._tokens / int(self._upto[-1])

    def patterns(self) -> Iterator[Pattern]:
        """Yield packs, until the few sequences in `left` go no better together than by another rule."""
        left = self.left
        while self._tokens > _TAIL * self._capacity:
            self._age += 1
            if self._age > _STALE:
                self._look()
            while not left[self._longest]:
                self._longest -= 1
            each = Counter(self._exact() or self._greedy())
            # to use up one length after the other would leave no mixture
            packs = max(1, min(self._alike, min(int(left[length]) // k for length, k in each.items()) // 2))
            for length, number in each.items():
                left[length] -= packs * number
                self._tokens -= packs * number * length
            yield Pattern(each, packs)

    def _exact(self) -> list[int] | None:
        """Return lengths that fill a pack."""
        left = self.left
        for _ in range(_TRIES if self._capacity - self._longest >= self._shortest else 1):
            chosen = self._draw()
            for length in chosen:
                left[length] -= 1
            enough = all(left[length] >= 0 for length in chosen)
            last = self._close(self._capacity - sum(chosen)) if enough else None
            for length in chosen:
                left[length] += 1
            if last is not None:
                return chosen + last
            if self._age:
                self._look()
        return None

    def _draw(self) -> list[int]:
        """Return the longest length, and others by lot."""
        chosen = [self._longest]
        room = self._capacity - self._longest
        while room > self._closing:
            fitting = int(np.searchsorted(self._lengths, room - self._shortest, side="right"))
            if not fitting:
                break
            draw = self._random.integers(self._upto[fitting - 1])
            chosen.append(int(self._lengths[np.searchsorted(self._upto, draw, side="right")]))
            room -= chosen[-1]
        return chosen

    def _close(self, room: int) -> list[int] | None:
        """Return none, one or two lengths that are `room` together."""
        if not room:
            return []
        half, shortest = room // 2, self._shortest
        if half >= shortest:
            pairs = np.minimum(
                self.left[shortest : half + 1], self.left[room - half : room - shortest + 1][::-1]
            )
            if room % 2 == 0:
                pairs[-1] = self.left[half] // 2
            upto = np.cumsum(pairs)
            if upto[-1]:
                one = shortest + int(np.searchsorted(upto, self._random.integers(upto[-1]), side="right"))
                return [one, room - one]
        return [room] if self.left[room] else None

    def _greedy(self) -> list[int]:
        """Return lengths of a pack that cannot be filled, the longest ones that fit."""
        chosen: list[int] = []
        room = self._capacity
        lengths = np.flatnonzero(self.left)
        while (fitting := int(np.searchsorted(lengths, room, side="right"))) and room:
            length = int(lengths[fitting - 1])
            number = min(room // length, int(self.left[length]))
            chosen += [length] * number
            room -= number * length
            lengths = lengths[: fitting - 1]
        return chosen
