"""Making rows of generations uniform: one answer a row, the keys that later steps expect."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nemo_skills.core.errors import UserError, require
from nemo_skills.core.hydra import opt
from nemo_skills.training.data_preparation_utils.base import DropRow, Row, RowMap, key_text

_SAMPLED = ("finish_reason", "predicted_answer", "verdict", "reasoning", "grade_details")


@dataclass(frozen=True, kw_only=True)
class ReadGenerations(RowMap):
    """Checks that rows have problem and answer, renames keys, makes one row of each answer."""

    problem_key: str = opt("problem", "what rows of the same problem have in common")
    generation_key: str = opt("generation", "key of the answer, which becomes `generation`")
    rename: dict[str, str] = opt(dict, "old key: new key, done first")

    def change(self, row: Row) -> Row | list[Row] | None:
        """Return the row, or one for each answer where `generation` is a list."""
        renamed = self._renamed(row) if self.rename else row
        if renamed.get(self.problem_key) is None:
            key_text(renamed, self.problem_key)
        generation = renamed.get(self.generation_key)
        if not generation:
            if self.generation_key not in renamed:
                key_text(renamed, self.generation_key)
            raise DropRow("empty generation")
        if self.generation_key != "generation":
            renamed = {k: v for k, v in renamed.items() if k != self.generation_key} | {
                "generation": generation
            }
        if not isinstance(generation, list):
            return None if renamed is row else renamed
        return [_sample(renamed, index) for index in range(len(generation))]

    def _renamed(self, row: Row) -> Row:
        if self.rename.keys().isdisjoint(row):
            return row
        return {self.rename.get(key, key): value for key, value in row.items()}


def _sample(row: Mapping[str, Any], index: int) -> Row:
    """Return the row with one of its answers and what belongs to it."""
    sample = {**row, "generation": row["generation"][index]}
    for key in _SAMPLED:
        value = row.get(key)
        if isinstance(value, list) and len(value) == len(row["generation"]):
            sample[key] = value[index]
    # it counts all answers together
    sample.pop("num_generated_tokens", None)
    return sample


@dataclass(frozen=True, kw_only=True)
class SelectKeys(RowMap):
    """Keeps only some keys of the rows, or drops some."""

    keep: tuple[str, ...] = opt((), "the only keys to keep; none keeps all")
    drop: tuple[str, ...] = opt((), "keys to drop")

    def __post_init__(self) -> None:
        require(bool(self.keep) != bool(self.drop), "give either keep or drop")

    def change(self, row: Row) -> Row:
        """Return the row with fewer keys."""
        if self.keep:
            return {key: row[key] for key in self.keep if key in row}
        return {key: value for key, value in row.items() if key not in self.drop}


@dataclass(frozen=True, kw_only=True)
class SetKeys(RowMap):
    """Sets keys of every row to fixed values, for instance the name of a source."""

    values: dict[str, Any] = opt(dict, "key: value")

    def change(self, row: Row) -> Row:
        """Return the row with the values."""
        return {**row, **self.values}


def graded(row: Row, key: str = "verdict") -> str:
    """Return what the grader has said about a row.

    Raises:
        UserError: the row was not graded.
    """
    verdict = row.get(key)
    if not isinstance(verdict, str):
        raise UserError(
            f"the row has no '{key}': grade the generations first, or take this step out with"
            f" enabled=false. Its keys: {', '.join(row) or 'none'}."
        )
    return verdict
