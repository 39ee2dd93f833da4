"""How many answers of a problem stay, and which."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from nemo_skills.core.errors import require
from nemo_skills.core.hydra import opt
from nemo_skills.prompt.text import as_text
from nemo_skills.training.data_preparation_utils.base import GroupFilter, Row, number_of


@dataclass(frozen=True, kw_only=True)
class Deduplicate(GroupFilter):
    """Of rows of a problem that agree in some fields, keeps the first one of the input."""

    key: str = opt("problem", "what rows of the same problem have in common")
    fields: tuple[str, ...] = opt(("generation",), "where they must agree; none keeps one row of a problem")
    normalise: bool = opt(True, "case and white space do not count")

    def reject(self, rows: Sequence[Row]) -> Sequence[str | None]:
        """Reject what was there before."""
        if len(rows) == 1:
            return [None]
        seen: set[str] = set()
        reasons: list[str | None] = []
        for row in rows:
            parts = [as_text(row.get(field)) for field in self.fields]
            if self.normalise:
                parts = [" ".join(part.lower().split()) for part in parts]
            text = "\0".join(parts)
            reasons.append("duplicate" if text in seen else None)
            seen.add(text)
        return reasons


@dataclass(frozen=True, kw_only=True)
class SamplePerProblem(GroupFilter):
    """Keeps at most so many rows of a problem, drawn by lot.

    The lot of a row depends on the seed and on its text: neither the order of the rows nor the names of the
    files matter. With `balance`, rows that differ there take turns, so that a source that wrote most rows
    does not get most places.
    """

    key: str = opt("problem", "what rows of the same problem have in common")
    max_samples: int = opt(4, "most rows of one problem")
    balance: str | None = opt(None, "key whose values get equal shares, such as the name of a source")
    field: str = opt("generation", "the text that decides about the lot")
    seed: int = opt(0, "another seed, another choice")

    def __post_init__(self) -> None:
        require(self.max_samples > 0, "max_samples must be positive")

    def reject(self, rows: Sequence[Row]) -> Sequence[str | None]:
        """Reject the rows with the highest lots."""
        if len(rows) <= self.max_samples:
            return [None] * len(rows)
        group = as_text(rows[0].get(self.key))
        lots = [number_of(self.seed, group, as_text(row.get(self.field))) for row in rows]
        order = sorted(range(len(rows)), key=lots.__getitem__)
        if self.balance is not None:
            order = _take_turns(order, [as_text(row.get(self.balance)) for row in rows])
        kept = set(order[: self.max_samples])
        return [None if index in kept else "more than max_samples" for index in range(len(rows))]


def _take_turns(order: Sequence[int], sources: Sequence[str]) -> list[int]:
    """Sort so that every source has its first row before any has its second one."""
    turns: Counter[str] = Counter()
    numbered = []
    for place, index in enumerate(order):
        numbered.append((turns[sources[index]], place, index))
        turns[sources[index]] += 1
    return [index for _, _, index in sorted(numbered)]


@dataclass(frozen=True, kw_only=True)
class MajorityAgreement(GroupFilter):
    """Keeps the rows that have the answer which most rows of the problem have.

    For problems without a known answer: what many samples agree on is probably right.
    """

    key: str = opt("problem", "what rows of the same problem have in common")
    answer_key: str = opt("predicted_answer", "the answer to compare")
    min_share: float = opt(0.5, "share of the problem's rows that must have the winning answer")
    min_samples: int = opt(2, "problems with fewer rows are dropped")

    def __post_init__(self) -> None:
        require(0 <= self.min_share <= 1, "min_share must be between 0 and 1")

    def reject(self, rows: Sequence[Row]) -> Sequence[str | None]:
        """Reject rows with other answers, or all of them when no answer wins."""
        if len(rows) < self.min_samples:
            return ["too few samples to agree"] * len(rows)
        answers = [
            None if row.get(self.answer_key) is None else as_text(row[self.answer_key]) for row in rows
        ]
        counts = Counter(answer for answer in answers if answer is not None)
        if not counts:
            return ["no answer"] * len(rows)
        top = counts.most_common(2)
        if top[0][1] < self.min_share * len(rows) or (len(top) == 2 and top[0][1] == top[1][1]):
            return ["no majority"] * len(rows)
        return [None if answer == top[0][0] else "differs from the majority" for answer in answers]


@dataclass(frozen=True, kw_only=True)
class PassRate(GroupFilter):
    """Keeps the problems that were solved often enough, but not too often: neither hopeless nor trivial."""

    key: str = opt("problem", "what rows of the same problem have in common")
    at_least: float = opt(0.0, "lowest share of correct rows")
    at_most: float = opt(1.0, "highest share of correct rows")
    verdict_key: str = opt("verdict", "key of the verdict")

    def __post_init__(self) -> None:
        require(0 <= self.at_least <= self.at_most <= 1, "needs 0 <= at_least <= at_most <= 1")

    def reject(self, rows: Sequence[Row]) -> Sequence[str | None]:
        """Reject all rows of a problem or none."""
        share = sum(row.get(self.verdict_key) == "correct" for row in rows) / len(rows)
        reason = "solved too rarely" if share < self.at_least else "solved too often"
        return [None if self.at_least <= share <= self.at_most else reason] * len(rows)
