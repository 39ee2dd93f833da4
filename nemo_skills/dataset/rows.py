"""Rows as a benchmark's authors publish them, read with errors that name the place."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nemo_skills.core.errors import UserError, did_you_mean

PreparedRow = dict[str, Any]
"""A row as this project uses it; see docs/benchmarks.md for its fields."""


@dataclass(frozen=True, kw_only=True)
class SourceRow:
    """One row of the origin."""

    values: Mapping[str, Any]

    file: str
    """The file that it comes from; within an archive or a folder, its path in there."""

    number: int
    """Its position in that file; the first is 1."""

    @property
    def place(self) -> str:
        """File and row, for messages."""
        return f"{self.file}, row {self.number}"

    def get(self, *keys: str) -> Any:
        """Return the value of the first of `keys` that the row has.

        Raises:
            UserError: it has none of them.
        """
        for key in keys:
            if self.values.get(key) is not None:
                return self.values[key]
        wanted = " or ".join(f"'{key}'" for key in keys)
        raise self.error(f"there is no {wanted}.{did_you_mean(keys[0], self.values)}")

    def text(self, *keys: str) -> str:
        """Return such a value as text without surrounding white space; whole numbers have no decimals."""
        value = self.get(*keys)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, str | int | float):
            raise self.error(f"'{keys[0]}' should be a text, not {type(value).__name__}")
        return str(value).strip()

    def code(self, *keys: str) -> str:
        """Return a text as it is, where white space matters."""
        value = self.get(*keys)
        if not isinstance(value, str):
            raise self.error(f"'{keys[0]}' should be a text, not {type(value).__name__}")
        return value

    def texts(self, *keys: str) -> list[str]:
        """Return a value that is a list of texts."""
        value = self.get(*keys)
        if not isinstance(value, list) or not all(isinstance(item, str | int | float) for item in value):
            raise self.error(f"'{keys[0]}' should be a list of texts")
        return [str(item).strip() for item in value]

    def error(self, message: str) -> UserError:
        """Return an error about this row, to be raised."""
        return UserError(f"{self.place}: {message}")
