"""By what a row is recognised: checksums of its text, and a compact index of many of them."""

import zlib
from array import array
from bisect import bisect_left
from collections.abc import Iterable
from hashlib import blake2b


def row_check(raw: bytes) -> int:
    """Return a checksum by which an edited row is noticed."""
    return zlib.crc32(raw)


def row_checks(rows: Iterable[bytes]) -> "array[int]":
    """Return the checksums of many rows."""
    return array("I", map(zlib.crc32, rows))


def row_key(raw: bytes) -> int:
    """Return 64 bits by which a row is found again at another place; the upper half is `row_check`.

    32 bits would do for one row against one answer, but not for looking up one row among millions.
    """
    return zlib.crc32(raw) << 32 | int.from_bytes(blake2b(raw, digest_size=4).digest(), "big")


class KeyTable:
    """Values by key, each handed out once; equal keys give their values in the order of insertion.

    Twenty bytes an entry, where a dictionary of integers takes more than a hundred.
    """

    def __init__(self, entries: Iterable[tuple[int, int]]) -> None:
        keys, values = array("Q"), array("Q")
        for key, value in entries:
            keys.append(key)
            values.append(value)
        order = sorted(range(len(keys)), key=keys.__getitem__)
        self._keys = array("Q", map(keys.__getitem__, order))
        self._values = array("Q", map(values.__getitem__, order))
        # at the first of equal keys: how many of their values have been taken
        self._taken = array("I", bytes(4 * len(keys)))

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, key: int) -> bool:
        return self._has(bisect_left(self._keys, key), key)

    def take(self, key: int) -> int | None:
        """Return the next value of a key, or None when there is none left."""
        first = bisect_left(self._keys, key)
        if not self._has(first, key) or not self._has(first + self._taken[first], key):
            return None
        self._taken[first] += 1
        return self._values[first + self._taken[first] - 1]

    def _has(self, index: int, key: int) -> bool:
        return index < len(self._keys) and self._keys[index] == key
