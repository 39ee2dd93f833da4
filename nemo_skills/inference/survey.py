"""Which rows of the input a run takes, and by what it knows them again."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple, Self

import orjson

from nemo_skills.core.errors import UserError
from nemo_skills.core.jsonl import Block, FileStamp, InputFiles, Journal, parse_row, row_checks
from nemo_skills.inference.config import GenerateConfig


class Span(NamedTuple):
    """Positions of the rows to take: from `start` up to, not including, `stop`."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        """How many rows that is."""
        return self.stop - self.start


class Part(NamedTuple):
    """Rows of the input and a digest of their texts."""

    start: int
    stop: int
    digest: str


class Selection(NamedTuple):
    """What the settings say about the rows to take."""

    limit: int | None
    num_chunks: int | None
    chunk_id: int | None

    @classmethod
    def of(cls, config: GenerateConfig) -> Self:
        """Take them from the settings."""
        return cls(config.row_limit, config.num_chunks, config.chunk_id)

    @property
    def whole(self) -> Self:
        """The rows of all chunks."""
        return self._replace(num_chunks=None, chunk_id=None)


@dataclass(frozen=True, kw_only=True)
class InputState:
    """The input as a run found it."""

    stamps: tuple[FileStamp, ...]
    selection: Selection
    parts: tuple[Part, ...]
    """One for a run, and one for each chunk of a merged output."""
    total: int
    """How many rows all chunks take together."""
    checked: bool
    """Whether every row was found to be JSON."""

    @property
    def span(self) -> Span:
        """All rows that were taken."""
        return Span(self.parts[0].start, self.parts[-1].stop)

    def encode(self) -> dict[str, Any]:
        """Return what `decode` reads."""
        return {
            "stamps": list(map(list, self.stamps)),
            "selection": list(self.selection),
            "parts": list(map(list, self.parts)),
            "total": self.total,
            "checked": self.checked,
        }

    @classmethod
    def decode(cls, data: Any) -> "InputState | None":
        """Read a state; None for anything else."""
        try:
            return cls(
                stamps=tuple(FileStamp(*stamp) for stamp in data["stamps"]),
                selection=Selection(*data["selection"]),
                parts=tuple(Part(*part) for part in data["parts"]),
                total=int(data["total"]),
                checked=bool(data["checked"]),
            )
        except (KeyError, TypeError):
            return None

    def looks_current(self, inputs: InputFiles, selection: Selection) -> bool:
        """Whether the files look as they did, and the settings take the same rows."""
        return selection == self.selection and inputs.stamps() == self.stamps

    def has_same_rows(self, other: "InputState") -> bool:
        """Whether the rows that both took have the same texts."""
        return [(part.stop - part.start, part.digest) for part in self.parts] == [
            (part.stop - part.start, part.digest) for part in other.parts
        ]


class Survey(NamedTuple):
    """What reading the input told."""

    state: InputState
    edited: int
    """How many of its rows have a record in the journal that answers another text."""


class Bounds(NamedTuple):
    """Positions of the rows to take, as far as they are known before all rows were read."""

    start: int
    stop: int | None
    total: int | None


def find_bounds(config: GenerateConfig, inputs: InputFiles) -> Bounds:
    """Return which rows the settings want: `max_samples` first, then the chunk.

    Raises:
        UserError: a file cannot be read, or there is no row to cut into chunks.
    """
    if config.num_chunks is None or config.chunk_id is None:
        return Bounds(0, config.row_limit, None)
    count = sum(len(block.rows) for block in inputs.blocks(0, config.row_limit))
    if not count:
        raise _no_rows(inputs)
    start, stop = (count * chunk // config.num_chunks for chunk in (config.chunk_id, config.chunk_id + 1))
    return Bounds(start, stop, count)


def survey(config: GenerateConfig, inputs: InputFiles, journal: Journal) -> Survey:
    """Read all rows that this run takes, so that a bad one is found before hours of work, not after.

    Raises:
        UserError: there is no row, or a line is none; the message names file and line.
    """
    stamps = inputs.stamps()
    start, stop, total = find_bounds(config, inputs)
    digest, position, edited = blake2b(digest_size=16), start, 0
    for block in inputs.blocks(start, stop):
        if config.on_bad_row == "error":
            check_rows(block)
        checks = row_checks(block.rows)
        digest.update(checks.tobytes())
        if not journal.empty:
            edited += len(journal.match(block.position, checks).edited)
        position = block.position + len(block.rows)
    if position == 0 and stop != 0:
        raise _no_rows(inputs)
    state = InputState(
        stamps=stamps,
        selection=Selection.of(config),
        parts=(Part(start, position, digest.hexdigest()),),
        total=position if total is None else total,
        checked=config.on_bad_row == "error",
    )
    return Survey(state, edited)


def check_rows(block: Block) -> None:
    """Parse every row.

    Raises:
        BadRowError: a line is no row; the message names file and line.
    """
    try:
        fine = all(type(row) is dict for row in map(orjson.loads, block.rows))
    except orjson.JSONDecodeError:
        fine = False
    if not fine:
        for index in range(len(block.rows)):
            parse_row(block.path, block.line(index))


def same_rows(inputs: InputFiles, parts: Sequence[Part], limit: int | None) -> bool:
    """Whether the input has exactly the rows of these neighbouring parts, which begin at its first row."""
    return list(_digests(inputs, [part.stop for part in parts], limit)) == [part.digest for part in parts]


def _digests(inputs: InputFiles, stops: list[int], limit: int | None) -> Iterator[str]:
    """Yield the digests of parts of the input that end at `stops`, and one more if there are more rows."""
    digest, left = blake2b(digest_size=16), list(reversed(stops))
    for block in inputs.blocks(0, limit):
        at, checks = block.position, row_checks(block.rows)
        while left and left[-1] <= block.position + len(block.rows):
            stop = left.pop()
            digest.update(checks[at - block.position : stop - block.position].tobytes())
            yield digest.hexdigest()
            digest, at = blake2b(digest_size=16), stop
        rest = checks[at - block.position :]
        digest.update(rest.tobytes())
        if not left and rest:
            yield "more"
            return


def _no_rows(inputs: InputFiles) -> UserError:
    return UserError(f"{inputs} has no rows." if len(inputs.paths) == 1 else f"{inputs} have no rows.")
