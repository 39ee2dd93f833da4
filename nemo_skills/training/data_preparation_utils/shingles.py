"""Texts as sets of short word sequences."""

import zlib
from collections.abc import Sequence


def shingles(words: Sequence[str], size: int) -> frozenset[int]:
    """Return the hashes of all sequences of `size` words; a shorter text is one shingle."""
    if not words:
        return frozenset()
    last = max(1, len(words) - size + 1)
    return frozenset(
        zlib.crc32(" ".join(words[i : i + size]).encode("utf-8", "surrogatepass")) for i in range(last)
    )
