"""How the pool and its workers talk: frames over a socket, and a board in shared memory."""

import mmap
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

import orjson

from nemo_skills.evaluation.verdicts import Grade, Verdict

_LENGTH = struct.Struct(">I")
_SLOT = struct.Struct("=qdd")
HELLO = struct.Struct("=iq")
"""What comes with the socket of a new worker: number of its slot, process id."""
WANTED = struct.Struct("=i")
"""What the pool asks the nursery for: a worker for a slot."""
READ_SIZE = 256 << 10


class Progress(NamedTuple):
    """What a worker is doing."""

    answer: int
    """How many answers it has begun."""
    since: float
    """When it began the last one (`time.monotonic`); 0 when it is idle."""
    processor: float = 0.0
    """How much time of a processor it had used by then."""


class Board:
    """One slot for each worker, in which it says what it is doing; written without any system call."""

    def __init__(self, descriptor: int, slots: int) -> None:
        self._memory = mmap.mmap(descriptor, self.size(slots))

    @staticmethod
    def size(slots: int) -> int:
        """Return how many bytes it takes."""
        return slots * _SLOT.size

    def write(self, slot: int, progress: Progress) -> None:
        """Say what the worker of a slot is doing."""
        _SLOT.pack_into(self._memory, slot * _SLOT.size, *progress)

    def read(self, slot: int) -> Progress:
        """Return what the worker of a slot last said."""
        return Progress(*_SLOT.unpack_from(self._memory, slot * _SLOT.size))

    def close(self) -> None:
        """Give the memory back."""
        self._memory.close()


def frame(payload: bytes) -> bytes:
    """Return a message with its length in front."""
    return _LENGTH.pack(len(payload)) + payload


class FrameReader:
    """Puts messages together from the pieces that arrive."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """Take a piece; yield the messages that are complete now."""
        self._data += piece
        at = 0
        while len(self._data) - at >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._data, at)
            end = at + _LENGTH.size + length
            if len(self._data) < end:
                break
            yield bytes(self._data[at + _LENGTH.size : end])
            at = end
        del self._data[:at]


def receive(channel: socket.socket) -> Iterator[bytes]:
    """Yield messages from a blocking socket until it is closed."""
    reader = FrameReader()
    while piece := channel.recv(READ_SIZE):
        yield from reader.feed(piece)


def encode_grades(grades: list[Grade]) -> bytes:
    """Return the message with some grades.

    Raises:
        TypeError: the details of one cannot be written as JSON.
    """
    return frame(orjson.dumps([[g.verdict, g.predicted_answer, dict(g.details)] for g in grades]))


def decode_grades(message: bytes) -> list[Grade]:
    """Read such a message."""
    return [
        Grade(verdict=Verdict(verdict), predicted_answer=answer, details=details)
        for verdict, answer, details in orjson.loads(message)
    ]
