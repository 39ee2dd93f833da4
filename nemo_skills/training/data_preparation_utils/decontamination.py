"""Dropping problems that are questions of a benchmark, word for word or nearly so."""

import functools
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_skills.core.errors import UserError, did_you_mean, require
from nemo_skills.core.hydra import opt
from nemo_skills.core.jsonl import InputFiles, parse_row
from nemo_skills.prompt.text import as_text
from nemo_skills.training.data_preparation_utils.base import GroupFilter, Row, key_text
from nemo_skills.training.data_preparation_utils.inputs import find_inputs
from nemo_skills.training.data_preparation_utils.shingles import shingles
from nemo_skills.training.data_preparation_utils.turns import turns_of

if TYPE_CHECKING:
    from nemo_skills.training.data_preparation_utils.minhash import SimilarTexts

_WORD = re.compile(r"\w+")


@dataclass(frozen=True, kw_only=True)
class Decontaminate(GroupFilter):
    """Drops problems that occur in benchmarks: the same words, long passages, or much the same wording."""

    key: str = opt("problem", "the text to look up, or a list of messages")
    against: str | None = opt(
        None, "files of questions, or names of prepared benchmarks; null or empty looks nothing up"
    )
    question_keys: tuple[str, ...] = opt(
        ("problem", "question", "prompt"), "the first of these that a row of a benchmark has is its question"
    )
    ngram: int = opt(8, "length of passages in words; 0 does not look for passages")
    ngram_share: float = opt(0.7, "share of a question's passages that must occur in the problem")
    similarity: float = opt(
        0.65, "Jaccard index of word sequences from which texts are too similar; 1 is off"
    )
    shingle: int = opt(2, "length of these sequences in words")

    def __post_init__(self) -> None:
        require(self.ngram >= 0, "ngram must be 0 or more")
        require(0 < self.ngram_share <= 1, "ngram_share must be above 0 and at most 1")
        require(0 < self.similarity <= 1, "similarity must be above 0 and at most 1")
        require(self.shingle > 0, "shingle must be positive")

    @property
    def active(self) -> bool:
        """Whether there is anything to look up in."""
        return bool(self.against)

    def prepare(self) -> None:
        """Read the benchmarks."""
        _ = self._index

    @functools.cached_property
    def _index(self) -> "_Questions":
        return _Questions(self, list(self._questions(find_benchmarks(self.against or ""))))

    def reject(self, rows: Sequence[Row]) -> Sequence[str | None]:
        """Reject all rows of a problem or none; of a conversation, every question is looked up."""
        reasons = (self._index.reason(words_of(text)) for text in self._texts(rows[0]))
        return [next(filter(None, reasons), None)] * len(rows)

    def _texts(self, row: Row) -> list[str]:
        turns = turns_of(row.get(self.key))
        if not turns:
            return [key_text(row, self.key)]
        asked = [turn.text for turn in turns if turn.role == "user"]
        # a question may also stand in a system message, or be repeated in an answer
        return asked if len(asked) == len(turns) == 1 else [*asked, "\n".join(turn.text for turn in turns)]

    def _questions(self, files: InputFiles) -> Iterator[tuple[str, ...]]:
        for block in files.blocks():
            for index in range(len(block.rows)):
                line = block.line(index)
                row = parse_row(block.path, line)
                key = next((key for key in self.question_keys if row.get(key) is not None), None)
                if key is None:
                    raise UserError(
                        f"{line.place}: has none of the keys {', '.join(self.question_keys)} of a question;"
                        f" its keys: {', '.join(row)}"
                    )
                if words := words_of(as_text(row[key])):
                    yield words


class _Questions:
    """What is known about the questions of benchmarks."""

    def __init__(self, options: Decontaminate, questions: Sequence[tuple[str, ...]]) -> None:
        self._options = options
        self._exact = set(map(hash, questions))
        self._totals: list[int] = []
        self._passages: dict[int, list[int]] = defaultdict(list)
        for number, words in enumerate(questions):
            passages = self._passages_of(words)
            self._totals.append(len(passages))
            for passage in passages:
                self._passages[passage].append(number)
        self._similar: SimilarTexts | None = None
        if options.similarity < 1:
            self._similar = _similar_texts(shingles(words, options.shingle) for words in questions)

    def reason(self, words: tuple[str, ...]) -> str | None:
        if hash(words) in self._exact:
            return "is a benchmark's question"
        hits: Counter[int] = Counter()
        for passage in self._passages_of(words):
            hits.update(self._passages.get(passage, ()))
        if any(count >= self._options.ngram_share * self._totals[number] for number, count in hits.items()):
            return "shares passages with a benchmark"
        if self._similar is not None:
            _, similarity = self._similar.most_similar(shingles(words, self._options.shingle))
            if similarity >= self._options.similarity:
                return "is similar to a benchmark's question"
        return None

    def _passages_of(self, words: tuple[str, ...]) -> set[int]:
        size = self._options.ngram
        if not size or len(words) < size:
            return set()
        return {hash(words[i : i + size]) for i in range(len(words) - size + 1)}


def _similar_texts(sets: Iterable[frozenset[int]]) -> "SimilarTexts":
    try:
        # numpy is no dependency of the package: most configs do without it
        from nemo_skills.training.data_preparation_utils.minhash import SimilarTexts
    except ImportError:
        raise UserError(
            "similarity needs numpy: pip install 'nemo-skills[train]', or give similarity=1"
        ) from None
    return SimilarTexts(sets)


def words_of(text: str) -> tuple[str, ...]:
    """Return the words of a text: case, punctuation and white space do not count."""
    return tuple(_WORD.findall(text.lower()))


def find_benchmarks(text: str) -> InputFiles:
    """Find files by path or pattern; a bare name means a prepared benchmark in the data folder.

    Raises:
        UserError: there is no such file, and no such benchmark has been prepared.
    """
    parts: list[str] = []
    for part in re.split(r"[,\s]+", text.strip()):
        if part and re.fullmatch(r"[\w-]+", part) and not Path(part).exists():
            parts += map(str, _prepared(part))
        elif part:
            parts.append(part)
    return find_inputs(",".join(parts))


def _prepared(name: str) -> list[Path]:
    folder = Path(os.environ.get("NEMO_SKILLS_DATA_DIR") or "data")
    files = sorted(path for path in (folder / name).glob("*.jsonl") if not path.stem.startswith("train"))
    if not files:
        present = [path.parent.name for path in folder.glob("*/*.jsonl")]
        raise UserError(
            f"decontamination: no file {name}, and no prepared benchmark {folder / name}"
            f" (NEMO_SKILLS_DATA_DIR names the data folder).{did_you_mean(name, present)}"
        )
    return files
