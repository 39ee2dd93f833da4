"""An append-only journal of finished rows that survives being killed at any moment.

Each record is one line: a checksum of the rest of the line, the position of the row in the input, a checksum
of the input row, and then the fields of the output row. A record that was cut off or damaged is recognised
and does not count; its row is simply done again. In memory a row costs 13 bytes: where its record is (8), the
checksum of its input (4), and whether the input still has it (1).
"""

import errno
import fcntl
import os
import re
import zlib
from array import array
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

import orjson

from nemo_skills.core.errors import UserError
from nemo_skills.core.jsonl._atomic import atomic_output, disk_errors, sync_folder
from nemo_skills.core.log import get_logger

_log = get_logger(__name__)

_FLUSH_BYTES = 256 << 10
_READ_BUFFER = 1 << 20
_READ_GUESS = 4 << 10
_CHECK_HEAD = b'{"_async_check":"'
_CHECK_END = len(_CHECK_HEAD) + 8
_HEADER = re.compile(rb'","_async_position":(\d{1,12}),"_async_row":"([0-9a-f]{8})"(?=[,}])')
_ABSENT = -1
_KEEPS = "Finished rows are kept: make room, then run the same command again."


@dataclass(frozen=True, kw_only=True)
class Repair:
    """What opening a journal found."""

    records: int
    """Records that were read, repeated ones included."""
    torn_bytes: int
    """Bytes of an unfinished record that were cut off the end."""
    damaged_lines: tuple[int, ...]
    """1-based numbers of unreadable lines; their rows are done again."""


class Journal:
    """Finished rows of one output, locked for one writer.

    Use `Journal.open`; the lock is released when the process ends, however it ends.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor
        self._end = 0
        self._pending = bytearray()
        self._unsynced = False
        self._removed = False
        self._offsets = array("q")
        self._row_checks = array("I")
        self._expected = bytearray()
        self._done = 0
        self.repair = Repair(records=0, torn_bytes=0, damaged_lines=())

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open or create the journal, lock it, cut off a torn tail and index what is there.

        Raises:
            UserError: the folder cannot be written, or another process works on this output.
        """
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = _open_locked(path)
        journal = cls(path, descriptor)
        try:
            with disk_errors(path):
                journal._load()
        except BaseException:
            os.close(descriptor)
            raise
        return journal

    @property
    def done(self) -> int:
        """How many rows of the input (those named by `expect`) are finished."""
        return self._done

    @property
    def empty(self) -> bool:
        """Whether there is no record at all."""
        return self._end == 0 and not self._pending

    def has(self, position: int) -> bool:
        """Whether there is a record for this position, whatever input row it answers."""
        return position < len(self._offsets) and self._offsets[position] != _ABSENT

    def expect(self, position: int, row_check: int) -> bool:
        """Note that the input has this row; return whether it is finished already.

        A record that answers another text at the same position does not count, and is dropped.
        """
        self._reserve(position)
        if self._offsets[position] != _ABSENT and self._row_checks[position] != row_check:
            self._offsets[position] = _ABSENT
        if not self._expected[position]:
            self._expected[position] = 1
            self._done += self._offsets[position] != _ABSENT
        self._row_checks[position] = row_check
        return self._offsets[position] != _ABSENT

    def append(self, position: int, row: bytes) -> None:
        """Add the finished row at a position that `expect` has named; the next `flush` writes it."""
        header = b'","_async_position":%d,"_async_row":"%08x"' % (position, self._row_checks[position])
        body = header + (b"}" if row == b"{}" else b"," + row[1:])
        self._done += self._offsets[position] == _ABSENT
        self._offsets[position] = self._end + len(self._pending)
        self._pending += b"%b%08x%b\n" % (_CHECK_HEAD, zlib.crc32(body), body)
        if len(self._pending) >= _FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Hand pending records to the operating system: they survive the death of this process.

        Raises:
            UserError: the disk is full or fails; earlier records are untouched.
        """
        if not self._pending:
            return
        with disk_errors(self.path, _KEEPS):
            self._unsynced = True
            try:
                while self._pending:
                    written = os.write(self._descriptor, self._pending)
                    self._end += written
                    del self._pending[:written]
            except OSError:
                self._drop_unfinished_record()
                raise

    def sync(self) -> None:
        """Make flushed records survive a power failure. May run in another thread than the writer's."""
        if self._unsynced:
            self._unsynced = False
            with disk_errors(self.path, _KEEPS):
                os.fsync(self._descriptor)

    def clear(self) -> None:
        """Forget everything, to start over."""
        with disk_errors(self.path):
            os.ftruncate(self._descriptor, 0)
        self._end = 0
        self._pending.clear()
        self._offsets, self._row_checks, self._expected, self._done = array("q"), array("I"), bytearray(), 0

    def rows(self) -> Iterator[bytes]:
        """Yield the finished rows of the input in its order."""
        self.flush()
        for position, expected in enumerate(self._expected):
            if expected and self._offsets[position] != _ABSENT:
                yield self._read(position)

    def finalise(self, target: Path, expected: int) -> None:
        """Write the rows in input order to `target`, which appears at once and complete.

        Raises:
            UserError: the disk is full, or the journal does not hold `expected` rows; `target` is unchanged.
        """
        written = 0
        with disk_errors(target, _KEEPS), atomic_output(target) as file:
            for row in self.rows():
                file.write(row)
                file.write(b"\n")
                written += 1
            if written != expected:
                raise UserError(
                    f"{self.path} holds {written} finished rows where {expected} are expected;"
                    " the output was not written. Run the same command again.",
                    exit_code=1,
                )

    def remove(self) -> None:
        """Delete the journal; the lock goes with `close`."""
        if not self._removed:  # a second time, the file of that name could be somebody else's
            self._removed = True
            with disk_errors(self.path):
                self.path.unlink(missing_ok=True)
            sync_folder(self.path.parent)

    def close(self) -> None:
        """Write what is pending and release the lock."""
        try:
            self.flush()
        finally:
            os.close(self._descriptor)

    def _read(self, position: int) -> bytes:
        offset, size = self._offsets[position], _READ_GUESS
        while True:
            line, newline, _ = os.pread(self._descriptor, size, offset).partition(b"\n")
            record = _parse(line) if newline else None
            if record is not None and record.position == position:
                return b"{" + line[record.body :].removeprefix(b",")
            if newline or offset + size > self._end:
                raise UserError(
                    f"{self.path} changed while it was in use; run the same command again.", exit_code=1
                )
            size *= 4

    def _drop_unfinished_record(self) -> None:
        """After a failed write: cut the file back to its last whole record; what follows is lost."""
        size = min(self._end, _READ_BUFFER)
        tail = os.pread(self._descriptor, size, self._end - size)
        self._end -= size - (tail.rfind(b"\n") + 1)
        self._pending.clear()
        with suppress(OSError):
            os.ftruncate(self._descriptor, self._end)

    def _reserve(self, position: int) -> None:
        missing = position + 1 - len(self._offsets)
        if missing > 0:
            self._offsets.extend([_ABSENT] * missing)
            self._row_checks.extend([0] * missing)
            self._expected.extend(bytes(missing))

    def _index(self, position: int, row_check: int, offset: int) -> None:
        self._reserve(position)
        # the first record of a row counts; one that answers an edited row replaces the older answer
        if self._offsets[position] == _ABSENT or self._row_checks[position] != row_check:
            self._offsets[position] = offset
            self._row_checks[position] = row_check

    def _load(self) -> None:
        records, offset, good_end = 0, 0, 0
        damaged: list[int] = []
        suspects: list[int] = []
        with open(self._descriptor, "rb", buffering=_READ_BUFFER, closefd=False) as file:
            for number, line in enumerate(file, 1):
                record = _parse(line[:-1]) if line.endswith(b"\n") else None
                if record is None:
                    suspects.append(number)
                else:
                    self._index(record.position, record.row_check, offset)
                    records += 1
                    damaged += suspects
                    suspects.clear()
                    good_end = offset + len(line)
                offset += len(line)
        # unreadable lines after the last good record are a write that was cut off, not damage
        if offset > good_end:
            self._refuse_foreign(good_end)
            os.ftruncate(self._descriptor, good_end)
        self._end = good_end
        self.repair = Repair(records=records, torn_bytes=offset - good_end, damaged_lines=tuple(damaged))

    def _refuse_foreign(self, good_end: int) -> None:
        """Never truncate a file that some other program wrote."""
        line, newline, _ = os.pread(self._descriptor, _READ_BUFFER, 0).partition(b"\n")
        if good_end or not newline or line.startswith(_CHECK_HEAD):
            return
        with suppress(orjson.JSONDecodeError):
            orjson.loads(line)
            raise UserError(f"{self.path} was not written by this program; move it away first.")


class _Record(NamedTuple):
    position: int
    row_check: int
    body: int
    """Where the fields of the row begin in the line."""


def _parse(line: bytes) -> _Record | None:
    """Take a journal line apart; None when it is not an intact record."""
    if not line.startswith(_CHECK_HEAD) or not line.endswith(b"}"):
        return None
    with suppress(ValueError):
        header = _HEADER.match(line, _CHECK_END)
        if header and int(line[len(_CHECK_HEAD) : _CHECK_END], 16) == zlib.crc32(
            memoryview(line)[_CHECK_END:]
        ):
            return _Record(int(header[1]), int(header[2], 16), header.end())
    return None


def _open_locked(path: Path) -> int:
    """Open `path` and lock it, making sure that the locked file is still the one of that name."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        try:
            _lock(descriptor, path)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        # its former owner finished and removed it between our two calls
        os.close(descriptor)


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f"Another process is writing this output ({path} is locked)."
            " Wait for it, or stop it, then run again."
        ) from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        _log.warning("The file system of %s has no locks: take care to run one client at a time.", path)
