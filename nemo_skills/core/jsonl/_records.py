"""The lines of a journal, and reading them at the speed of the disk.

A line is a JSON object whose first field is 48 hexadecimal digits: a checksum of what follows on the line,
the length of the line, a position, and the key of the input row. The other fields are those of the output
row. Lengths let a reader hop from record to record without looking at what is between; the checksum tells
an intact record from one that was cut off or damaged.
"""

import os
import struct
import zlib
from binascii import unhexlify
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import suppress
from enum import IntEnum
from itertools import islice
from typing import NamedTuple

MAGIC = b'{"_async":"'
HEADER = struct.Struct(">IIQII")
"""Checksum, length of the line, kind and position, upper and lower half of the row's key."""
HEADER_PLACES = struct.Struct(">8xQI4x")
"""Of a header only kind and position, and the upper half of the key."""
POSITION_LIMIT = 1 << 56
"""Positions are below; the bits above say what a record is when it is no row."""
NOWHERE = POSITION_LIMIT - 1
"""The position of rows that the input does not have."""
LONGEST = (1 << 32) - 1

_SUM, _LENGTH, _POSITION, _KEY = (len(MAGIC) + 8 * n for n in (0, 1, 2, 4))
_QUOTE = _KEY + 16
_SHORTEST = _QUOTE + len('"}\n')
_NEWLINE = ord("\n")
_COMMA = ord(",")
_WINDOW = 256 << 10


class Kind(IntEnum):
    """What a record is, besides a row."""

    ROW = 0
    MOVED = 1
    """The row of an earlier record counts at this position too."""
    NOTE = 2
    """What the writer wants to know when it comes back."""
    GONE = 3
    """What earlier records say about this position counts no longer; their rows may still be moved."""
    DOUBT = 4
    """Something in the file is damaged: check all of it when opening."""


class Found(NamedTuple):
    """A record that was found in a file."""

    offset: int
    size: int
    kind: int
    position: int
    key: int


class Batch(NamedTuple):
    """Records that follow one another."""

    offset: int
    """Of the first one."""
    headers: bytes
    """Their headers, one after the other."""

    def record(self, index: int) -> Found:
        """Return one of them."""
        return next(islice(self.records(), index, None))

    def records(self) -> Iterator[Found]:
        """Yield them one by one; whoever has millions looks at the headers himself."""
        offset = self.offset
        for _, size, position, check, rest in HEADER.iter_unpack(self.headers):
            yield Found(
                offset, size, position // POSITION_LIMIT, position % POSITION_LIMIT, check << 32 | rest
            )
            offset += size


class Damage(NamedTuple):
    """A stretch of a journal that cannot be read."""

    start: int
    stop: int
    line: int
    """1-based number of its first line."""


def encode(kind: Kind, position: int, key: int, row: bytes) -> bytes:
    """Return the line of a record; `row` is the text of a JSON object."""
    rest = row[1:] if row == b"{}" else b"," + row[1:]
    length = _QUOTE + 2 + len(rest)
    if length > LONGEST:
        raise ValueError(f"a row of {length} bytes is too long for a journal")
    checked = b'%08x%016x%016x"%b' % (length, kind << 56 | position, key, rest)
    return b"%b%08x%b\n" % (MAGIC, zlib.crc32(checked), checked)


def row_of(line: bytes) -> bytes:
    """Return the row of a whole line."""
    return b"{" + line[_QUOTE + (2 if line[_QUOTE + 1] == _COMMA else 1) : -1]


def key_of(line: bytes) -> int:
    """Return the key in a line that is intact."""
    return int(line[_KEY:_QUOTE], 16)


def is_intact(line: bytes) -> bool:
    """Whether these bytes are one whole record."""
    return (
        len(line) >= _SHORTEST
        and line.startswith(MAGIC)
        and line[_LENGTH:_POSITION] == b"%08x" % len(line)
        and line.endswith(b"}\n")
        and line[_SUM:_LENGTH] == b"%08x" % zlib.crc32(memoryview(line)[_LENGTH:-1])
    )


def read_record(descriptor: int, offset: int, end: int) -> bytes | None:
    """Return the line at an offset if it is intact and ends before `end`."""
    head = os.pread(descriptor, _SHORTEST, offset)
    length = _length(head)
    if length is None or offset + length > end:
        return None
    line = os.pread(descriptor, length, offset)
    return line if is_intact(line) else None


class Scan:
    """One pass over the records of a journal; afterwards it knows where they end and what is damaged.

    Args:
        descriptor: the open file.
        size: where to stop.
        check_from: records from here on must have the right checksum, not only a plausible form.
    """

    def __init__(self, descriptor: int, size: int, check_from: int = 0) -> None:
        self._descriptor = descriptor
        self.size = size
        self._check_from = check_from
        self._lines = 0
        self._starts: list[int] = []
        self.end = 0
        """Where the last intact record ends."""
        self.damaged: list[Damage] = []

    def __iter__(self) -> Iterator[Batch]:
        window = _WINDOW
        while self.end < self.size:
            data = os.pread(self._descriptor, min(window, self.size - self.end), self.end)
            batch, used = self._split(data)
            if used:
                self._lines += len(batch.headers) // HEADER.size
                self.end += used
                window = _WINDOW
                yield batch
                continue
            length = _length(data)
            if length is not None and len(data) < length <= self.size - self.end:
                window = length
            elif not self._pass_over_damage():
                return

    def is_damaged(self, offset: int) -> bool:
        """Whether an offset lies in a stretch that could not be read."""
        index = bisect_right(self._starts, offset) - 1
        return index >= 0 and offset < self.damaged[index].stop

    def _split(self, data: bytes, strict: bool = False) -> tuple[Batch, int]:
        """Take whole records off the beginning of `data`; return them and how many bytes they are."""
        strict = strict or self.end + len(data) > self._check_from
        heads, used = _checked_heads(data) if strict else _heads(data)
        try:
            return Batch(self.end, unhexlify(b"".join(heads).replace(MAGIC, b""))), used
        except ValueError:  # a damaged header, which the checksum tells
            return self._split(data, strict=True)

    def _pass_over_damage(self) -> bool:
        """Go on at the next intact record; False when there is none."""
        start, number, at = self.end, self._lines + 1, self.end
        while at < self.size:
            data = os.pread(self._descriptor, min(_WINDOW, self.size - at), at)
            found = data.find(b"\n" + MAGIC)
            if found < 0:
                # the beginning of a record may hang over the edge
                step = len(data) - len(MAGIC)
                if step <= 0:
                    return False
                self._lines += data.count(b"\n", 0, step)
                at += step
                continue
            self._lines += data.count(b"\n", 0, found + 1)
            at += found + 1
            if read_record(self._descriptor, at, self.size) is not None:
                self.damaged.append(Damage(start, at, number))
                self._starts.append(start)
                self.end = at
                return True
        return False


def _heads(data: bytes) -> tuple[list[bytes], int]:
    """Return the heads of the records that `data` begins with, and where these end; made for speed."""
    heads: list[bytes] = []
    at = 0
    with suppress(ValueError, IndexError):
        while True:
            head = data[at : at + _QUOTE]
            after = at + int(head[_LENGTH:_POSITION], 16)
            if data[after - 1] != _NEWLINE or after < at + _SHORTEST or not head.startswith(MAGIC):
                break
            heads.append(head)
            at = after
    return heads, at


def _checked_heads(data: bytes) -> tuple[list[bytes], int]:
    """Do the same, up to the first record that is not intact."""
    heads: list[bytes] = []
    at, view = 0, memoryview(data)
    while (length := _length(data[at : at + _SHORTEST])) is not None:
        line = view[at : at + length]
        checksum = b"%08x" % zlib.crc32(line[_LENGTH:-1])
        if len(line) < length or line[-1] != _NEWLINE or line[_SUM:_LENGTH] != checksum:
            break
        heads.append(data[at : at + _QUOTE])
        at += length
    return heads, at


def _length(head: bytes) -> int | None:
    """Return how long a record says it is, or None if this is no record."""
    if len(head) < _SHORTEST or not head.startswith(MAGIC):
        return None
    try:
        length = int(head[_LENGTH:_POSITION], 16)
    except ValueError:
        return None
    return length if length >= _SHORTEST else None
