"""Preference pairs for DPO: a better and a worse answer to the same problem."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from nemo_skills.core.errors import UserError, did_you_mean, require
from nemo_skills.core.hydra import opt
from nemo_skills.prompt.text import as_text
from nemo_skills.training.data_preparation_utils.base import (
    Combined,
    GroupMap,
    Row,
    RowMap,
    key_text,
    number_of,
)
from nemo_skills.training.data_preparation_utils.formatting import KEPT, PromptOptions
from nemo_skills.training.data_preparation_utils.reading import graded

_ALIGNER = {"chosen": "chosen_response", "rejected": "rejected_response"}


@dataclass(frozen=True, kw_only=True)
class MakePairs(GroupMap):
    """Makes pairs out of the answers to a problem; no answer is in two pairs.

    `random` pairs correct answers with wrong ones by lot. `best_worst` sorts by a score and pairs the best
    with the worst, the second best with the second worst, and so on.
    """

    key: str = opt("problem", "what rows of the same problem have in common")
    strategy: Literal["random", "best_worst"] = opt("random", "how to pair")
    max_pairs: int = opt(1, "most pairs of one problem")
    chosen: tuple[str, ...] = opt(("correct",), "verdicts of better answers (random)")
    rejected: tuple[str, ...] = opt(("incorrect",), "verdicts of worse answers (random)")
    verdict_key: str = opt("verdict", "key of the verdict (random)")
    score_key: str = opt("reward", "key of the score, a number (best_worst)")
    min_gap: float = opt(0.0, "scores must differ by more than this (best_worst)")
    generation_key: str = opt("generation", "the answer")
    seed: int = opt(0, "another seed, other pairs")

    def __post_init__(self) -> None:
        require(self.max_pairs > 0, "max_pairs must be positive")
        require(self.min_gap >= 0, "min_gap must be 0 or more")
        both = set(self.chosen) & set(self.rejected)
        require(not both, f"verdicts both chosen and rejected: {', '.join(sorted(both))}")

    def combine(self, rows: Sequence[Row]) -> Combined:
        """Return pairs as rows of the better answer, with `chosen` and `rejected`."""
        pairs = self._by_lot(rows) if self.strategy == "random" else self._by_score(rows)
        pairs = [(a, b) for a, b in pairs if self._texts(rows[a]) != self._texts(rows[b])][: self.max_pairs]
        used = {index for pair in pairs for index in pair}
        reason = "more than max_pairs" if len(pairs) == self.max_pairs else "no partner"
        made = [self._pair(rows[better], rows[worse]) for better, worse in pairs]
        return Combined(made, [None if index in used else reason for index in range(len(rows))])

    def _by_lot(self, rows: Sequence[Row]) -> list[tuple[int, int]]:
        verdicts = [graded(row, self.verdict_key) for row in rows]
        lots = [number_of(self.seed, *self._texts(row)) for row in rows]
        order = sorted(range(len(rows)), key=lots.__getitem__)
        better = [index for index in order if verdicts[index] in self.chosen]
        worse = [index for index in order if verdicts[index] in self.rejected]
        return list(zip(better, worse, strict=False))

    def _by_score(self, rows: Sequence[Row]) -> list[tuple[int, int]]:
        scores = [self._score(row) for row in rows]
        order = sorted(
            range(len(rows)), key=lambda i: (-scores[i], number_of(self.seed, *self._texts(rows[i])))
        )
        pairs = [(order[i], order[-1 - i]) for i in range(len(order) // 2)]
        return [(a, b) for a, b in pairs if scores[a] - scores[b] > self.min_gap]

    def _score(self, row: Row) -> float:
        score = row.get(self.score_key)
        if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
            near = did_you_mean(self.score_key, row)
            raise UserError(f"'{self.score_key}' (score_key) must be a number, not {score!r}.{near}")
        return float(score)

    def _texts(self, row: Row) -> tuple[str, str]:
        return as_text(row.get(self.key)), as_text(row.get(self.generation_key))

    def _pair(self, better: Row, worse: Row) -> Row:
        pair = {**better, "chosen": key_text(better, self.generation_key)}
        pair["rejected"] = key_text(worse, self.generation_key)
        pair["chosen_reward"], pair["rejected_reward"] = self._rewards(better, worse)
        return pair

    def _rewards(self, better: Row, worse: Row) -> tuple[float, float]:
        if self.strategy == "best_worst":
            return self._score(better), self._score(worse)
        return 1.0, 0.0


@dataclass(frozen=True, kw_only=True)
class FormatPairs(PromptOptions, RowMap):
    """Writes `prompt`, `chosen` and `rejected` as text, or `messages` instead of `prompt` for chat."""

    names: Literal["short", "aligner"] = opt(
        "short", "aligner: the answers are called chosen_response and rejected_response"
    )
    keep: tuple[str, ...] = opt(
        (*KEPT[:3], "chosen_reward", "rejected_reward"), "keys of the row to keep beside"
    )
    strip: bool = opt(True, "drop white space around the answers")

    def prepare(self) -> None:
        """Read the prompt."""
        _ = self.prompt, self.answer_end

    def change(self, row: Row) -> Row:
        """Return the training row."""
        asked = self.asked(row)
        made: dict[str, Any] = {"prompt": asked} if isinstance(asked, str) else {"messages": asked}
        for key in ("chosen", "rejected"):
            answer = key_text(row, key)
            answer = answer.strip() if self.strip else answer
            made[_ALIGNER[key] if self.names == "aligner" else key] = answer + self.answer_end
        return made | {key: row[key] for key in self.keep if key in row}
