"""Steps about the output as a whole: its order, and which rows are kept for validation."""

from dataclasses import dataclass

from nemo_skills.core.errors import require
from nemo_skills.core.hydra import opt
from nemo_skills.training.data_preparation_utils.base import (
    HASH_LIMIT,
    Processor,
    Row,
    key_text,
    number_of,
)
from nemo_skills.training.data_preparation_utils.turns import first_question


@dataclass(frozen=True, kw_only=True)
class Shuffle(Processor):
    """Puts the rows of the output in random order; every order is equally likely."""

    seed: int = opt(0, "another seed, another order")


@dataclass(frozen=True, kw_only=True)
class Split(Processor):
    """Keeps some problems, with all their rows, for validation.

    Conversations are about the same problem when they begin with the same question.
    """

    validation: float | int = opt(0, "a share of the problems, below 1, or a number of them; 0 keeps none")
    key: str = opt("problem", "rows that are the same here stay together")
    seed: int = opt(0, "another seed, other problems")

    def __post_init__(self) -> None:
        require(self.validation >= 0, "validation must be 0 or more")
        whole = self.validation < 1 or float(self.validation).is_integer()
        require(whole, "validation must be a share below 1, or a whole number of problems")

    @property
    def active(self) -> bool:
        """Whether anything is kept for validation."""
        return self.validation > 0

    @property
    def problems(self) -> int:
        """How many problems are wanted; 0 where it is a share."""
        return int(self.validation) if self.validation >= 1 else 0

    def problem(self, row: Row) -> str:
        """Return what must not be both in the training data and for validation."""
        return first_question(row.get(self.key)) or key_text(row, self.key)

    def number(self, problem: str) -> int:
        """Return the number that decides about a problem: the smallest ones go to validation."""
        return number_of(self.seed, problem)

    def limit(self, smallest: set[int]) -> int:
        """Return the first number that stays in the training data, knowing the smallest ones of all."""
        if not self.problems:
            return int(self.validation * HASH_LIMIT)
        return max(sorted(smallest)[: self.problems], default=-1) + 1
