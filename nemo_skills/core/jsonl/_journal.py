"""An append-only journal of finished rows that survives being killed at any moment.

A record that was cut off or damaged is recognised and does not count; its row is simply done again.
"""

import os
import zlib
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

import orjson

from nemo_skills.core.errors import UserError
from nemo_skills.core.jsonl._atomic import atomic_output, disk_errors, sync_folder
from nemo_skills.core.jsonl._index import Match, RowIndex
from nemo_skills.core.jsonl._keys import row_key
from nemo_skills.core.jsonl._lock import open_locked
from nemo_skills.core.jsonl._records import (
    HEADER,
    MAGIC,
    NOWHERE,
    POSITION_LIMIT,
    Found,
    Kind,
    Scan,
    encode,
    key_of,
    read_record,
    row_of,
)
from nemo_skills.core.jsonl._table import Place, PlaceTable, ReadAhead

_FLUSH_BYTES = 256 << 10
_READ_BUFFER = 1 << 20
_CHECKED_TAIL = 16 << 20
_KEEPS = "Finished rows are kept: make room, then run the same command again."


@dataclass(frozen=True, kw_only=True)
class Repair:
    """What opening a journal found."""

    records: int
    """Records that were read, repeated ones included."""
    rows: int
    """Positions of the input that have one."""
    torn_bytes: int
    """Bytes of an unfinished record that were cut off the end."""
    damaged_lines: tuple[int, ...]
    """1-based numbers of the lines where something unreadable begins; its rows are done again."""


class Written(NamedTuple):
    """An output that was written."""

    rows: int
    size: int
    crc: int


class Journal:
    """Finished rows of one output, locked for one writer.

    Use `Journal.open`; the lock is released when the process ends, however it ends.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.note: bytes | None = None
        """The text that `annotate` wrote last."""
        self.repair = Repair(records=0, rows=0, torn_bytes=0, damaged_lines=())
        self._descriptor = descriptor
        self._end = 0
        self._pending = bytearray()
        self._unsynced = False
        self._removed = False
        self._index = RowIndex()
        self._damage: frozenset[int] = frozenset()

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open or create the journal, lock it, cut off a torn tail and see what is there.

        Raises:
            UserError: the folder cannot be written, or another process works on this output.
        """
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = open_locked(path)
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
        """How many rows of the input, as far as `match` has seen it, are finished."""
        return self._index.done

    @property
    def empty(self) -> bool:
        """Whether there is no row at all."""
        return not self._index.rows

    def is_done(self, position: int) -> bool:
        """Whether the row that `match` has seen at this position is finished."""
        return self._index.is_done(position)

    def match(self, start: int, checks: "array[int]") -> Match:
        """Say which rows of the input from `start` on are to do; `checks` has the `row_check` of each.

        A record that answers another text than the input has does not count.
        """
        return self._index.match(start, checks)

    def append(self, position: int, raw: bytes, row: bytes) -> None:
        """Add the finished row of the input row `raw`; the next `flush` writes it."""
        self._write(encode(Kind.ROW, position, row_key(raw), row))
        self._index.finish(position)

    def restore(self, position: int, key: int, row: bytes) -> None:
        """Add a row that was finished elsewhere, for the input row with this `row_key`."""
        self._write(encode(Kind.ROW, position, key, row))
        self._index.finish(position, key >> 32)

    def keep(self, key: int, row: bytes) -> None:
        """Add a row that was finished elsewhere, for an input row that is not there now."""
        self._write(encode(Kind.ROW, NOWHERE, key, row))
        self._index.find(NOWHERE, key >> 32)

    def move(self, position: int, key: int, offset: int) -> None:
        """Let the record at an offset, which `records` told, count for another position as well."""
        self._write(encode(Kind.MOVED, position, key, b'{"_from":%d}' % offset))
        self._index.finish(position, key >> 32)

    def annotate(self, note: bytes) -> None:
        """Keep a JSON object as `note`, for whoever opens the journal next."""
        self.note = note
        self._write(encode(Kind.NOTE, 0, 0, note))

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
        self._end, self._damage = 0, frozenset()
        self._pending.clear()
        self._index, self.note = RowIndex(), None

    def drop_stale(self) -> None:
        """Settle that records which do not answer the input count no longer where they stand.

        `match` must have seen the whole input. Without this, a row that was moved would count twice when the
        input is changed back.
        """
        for position in self._index.stale():
            self._write(encode(Kind.GONE, position, 0, b"{}"))

    def spare(self, parts: int) -> Iterator[Iterator[tuple[int, int]]]:
        """Yield, for each part of the keys, key and offset of the records that answer no row of the input.

        They can be moved to rows of the same text. `match` must have seen the whole input. Keys are of the
        part that is the remainder of their division by `parts`, of which there are many for large journals.
        """
        self.flush()
        with PlaceTable(self.path.parent, self._index.first) as places:
            self._find_places(places)
            for part in range(parts):
                used = array("Q", sorted(place.offset for place in places if place.key % parts == part))
                yield (
                    (record.key, record.offset)
                    for record in self._records(Kind.ROW)
                    if record.key % parts == part and not _contains(used, record.offset)
                )

    def rows(self, on_key: Callable[[int], object] | None = None) -> Iterator[bytes]:
        """Yield the finished rows of the input in its order, telling `on_key` the `row_key` of each.

        Raises:
            UserError: the file is damaged; the next run does again what was lost.
        """
        self.flush()
        ahead = ReadAhead(self._descriptor)
        with PlaceTable(self.path.parent, self._index.first) as places:
            self._find_places(places)
            for offset, size, key in places:
                ahead.want(offset)
                line = self._read(offset, size)
                if key_of(line) != key:
                    raise self._changed()
                if on_key is not None:
                    on_key(key)
                yield row_of(line)

    def finalise(self, target: Path, expected: int, on_key: Callable[[int], object] | None = None) -> Written:
        """Write the rows in input order to `target`, which appears at once and complete.

        Raises:
            UserError: the disk is full, or the journal does not hold `expected` rows; `target` is unchanged.
        """
        written = size = crc = 0
        with disk_errors(target, _KEEPS), atomic_output(target) as file:
            for row in self.rows(on_key):
                line = row + b"\n"
                file.write(line)
                crc = zlib.crc32(line, crc)
                size += len(line)
                written += 1
            if written != expected:
                raise UserError(
                    f"{self.path} holds {written} finished rows where {expected} are expected;"
                    " the output was not written. Run the same command again.",
                    exit_code=1,
                )
        return Written(written, size, crc)

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

    def _write(self, record: bytes) -> None:
        self._pending += record
        if len(self._pending) >= _FLUSH_BYTES:
            self.flush()

    def _read(self, offset: int, size: int) -> bytes:
        line = os.pread(self._descriptor, size, offset)
        if len(line) != size or not line.startswith(MAGIC):
            raise self._changed()
        return line

    def _records(self, kind: Kind) -> Iterator[Found]:
        for batch in Scan(self._descriptor, self._end):
            yield from (record for record in batch.records() if record.kind == kind)

    def _find_places(self, places: PlaceTable) -> None:
        """Note where the record of each finished row is, checking every one."""
        scan = Scan(self._descriptor, self._end)
        for batch in scan:
            for record in batch.records():
                if record.kind == Kind.ROW and self._index.is_done(record.position):
                    places.put(record.position, Place(record.offset, record.size, record.key))
                elif record.kind == Kind.MOVED and self._index.is_done(record.position):
                    places.put(record.position, self._moved_place(record))
        if scan.end < self._end or any(damage.start not in self._damage for damage in scan.damaged):
            self._write(encode(Kind.DOUBT, 0, 0, b"{}"))
            self.flush()
            self.sync()
            raise UserError(
                f"{self.path} was damaged on the disk after its rows were written."
                " Run the same command again: what was lost is done again.",
                exit_code=1,
            )

    def _moved_place(self, record: Found) -> Place:
        offset = self._source(record)
        line = read_record(self._descriptor, offset, self._end)
        if line is None or key_of(line) != record.key:
            raise self._changed()
        return Place(offset, len(line), record.key)

    def _source(self, record: Found) -> int:
        """Return the offset of the record that a moved one means."""
        return int(orjson.loads(row_of(self._read(record.offset, record.size)))["_from"])

    def _changed(self) -> UserError:
        return UserError(f"{self.path} changed while it was in use; run the same command again.", exit_code=1)

    def _drop_unfinished_record(self) -> None:
        """After a failed write: cut the file back to its last whole record; what follows is lost."""
        size = min(self._end, _READ_BUFFER)
        tail = os.pread(self._descriptor, size, self._end - size)
        self._end -= size - (tail.rfind(b"\n") + 1)
        self._pending.clear()
        with suppress(OSError):
            os.ftruncate(self._descriptor, self._end)

    def _load(self) -> None:
        size = os.fstat(self._descriptor).st_size
        # what was written last before a power failure may be full of holes; older records were synced
        scan = Scan(self._descriptor, size, check_from=size - _CHECKED_TAIL)
        if self._load_from(scan) or scan.damaged:
            self._index, self.note = RowIndex(), None
            scan = Scan(self._descriptor, size)
            self._load_from(scan)
        # unreadable lines after the last good record are a write that was cut off, not damage
        if size > scan.end:
            self._refuse_foreign(scan.end)
            os.ftruncate(self._descriptor, scan.end)
        self._end = scan.end
        self._damage = frozenset(damage.start for damage in scan.damaged)
        self.repair = Repair(
            records=self._index.rows,
            rows=self._index.found,
            torn_bytes=size - scan.end,
            damaged_lines=tuple(damage.line for damage in scan.damaged),
        )

    def _load_from(self, scan: Scan) -> bool:
        """Take note of all records; return whether one of them says that the file cannot be trusted."""
        doubt = False

        def other(index: int) -> None:
            nonlocal doubt
            _, _, position, check, _ = HEADER.unpack_from(batch.headers, index * HEADER.size)
            kind, position = divmod(position, POSITION_LIMIT)
            if kind == Kind.GONE:
                self._index.drop(position)
            elif kind == Kind.MOVED:
                if not (scan.damaged and scan.is_damaged(self._source(batch.record(index)))):
                    self._index.find(position, check)
            elif kind == Kind.NOTE:
                line = read_record(self._descriptor, batch.record(index).offset, scan.size)
                self.note = row_of(line) if line is not None else None
            doubt |= kind == Kind.DOUBT

        for batch in scan:
            self._index.load(batch.headers, other)
        return doubt

    def _refuse_foreign(self, good_end: int) -> None:
        """Never truncate a file that some other program wrote."""
        line, newline, _ = os.pread(self._descriptor, _READ_BUFFER, 0).partition(b"\n")
        if good_end or not newline or line.startswith(MAGIC):
            return
        with suppress(orjson.JSONDecodeError):
            orjson.loads(line)
            raise UserError(f"{self.path} was not written by this program; move it away first.")


def _contains(offsets: "array[int]", offset: int) -> bool:
    found = bisect_left(offsets, offset)
    return found < len(offsets) and offsets[found] == offset
