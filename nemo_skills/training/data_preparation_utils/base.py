"""What a processor is: a small class that looks at one row, or at all rows of one problem.

A processor of your own derives from one of the four classes here; its parameters are the fields of a frozen
dataclass, and are checked, with their types, before a run starts.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

from nemo_skills.core.errors import UserError, did_you_mean
from nemo_skills.prompt.text import as_text

Row = dict[str, Any]
HASH_LIMIT = 1 << 64


class DropRow(Exception):
    """Raised by a `RowMap` to drop the row; the message is the reason that the report counts."""


class Processor(ABC):  # noqa: B024 (what is abstract differs by kind)
    """One step."""

    @property
    def active(self) -> bool:
        """Whether the step does anything; one that does not is left out."""
        return True

    def prepare(self) -> None:  # noqa: B027 (most have nothing to do)
        """Load what the step needs, once and before any row: mistakes show at once."""


class RowFilter(Processor):
    """Keeps or drops single rows, and does not change them."""

    @abstractmethod
    def reject(self, row: Row) -> str | None:
        """Return why the row is dropped, in a few words that are the same for many rows; None keeps it."""


class RowMap(Processor):
    """Changes single rows."""

    @abstractmethod
    def change(self, row: Row) -> Row | list[Row] | None:
        """Return the new row, or several, or None to leave it as it is; raise `DropRow` to drop it."""


class GroupProcessor(Processor):
    """Looks at all rows together that have the same text under `key`."""

    key: str


class GroupFilter(GroupProcessor):
    """Keeps or drops rows of a group."""

    @abstractmethod
    def reject(self, rows: Sequence[Row]) -> Sequence[str | None]:
        """Return for each row why it is dropped; None keeps it."""


class Combined(NamedTuple):
    """What became of the rows of a group."""

    rows: list[Row]
    """The new rows."""
    fates: Sequence[str | None]
    """For each old row why it is in no new row; None where it is in one."""


class GroupMap(GroupProcessor):
    """Makes new rows out of those of a group."""

    @abstractmethod
    def combine(self, rows: Sequence[Row]) -> Combined:
        """Return the new rows, and the fate of the old ones."""


def key_text(row: Mapping[str, Any], key: str) -> str:
    """Return what a row has under `key`, as text.

    Raises:
        UserError: the row does not have it.
    """
    value = row.get(key)
    if value is None:
        raise UserError(
            f"the row has no '{key}'.{did_you_mean(key, row)} Its keys: {', '.join(row) or 'none'}."
        )
    return value if type(value) is str else as_text(value)


def number_of(seed: int, *parts: str) -> int:
    """Return 64 random-looking bits that depend on the seed and the parts alone."""
    text = "\0".join((str(seed), *parts)).encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "big")
