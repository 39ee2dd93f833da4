"""Prepares AIME 2025: `python -m nemo_skills.dataset.aime25.prepare`."""

from pathlib import PurePosixPath

from nemo_skills.dataset.aime25 import DEFAULTS
from nemo_skills.dataset.answers import plain_number
from nemo_skills.dataset.preparing import Preparation, Split, run
from nemo_skills.dataset.rows import PreparedRow, SourceRow

_FOLDER = "https://huggingface.co/datasets/opencompass/AIME2025/resolve/main"


def convert(row: SourceRow) -> PreparedRow:
    """Tell the two papers apart by the names of their files."""
    paper = "II" if PurePosixPath(row.file).stem.endswith("II") else "I"
    answer = row.text("answer").replace("^\\circ", "").strip("$ ")
    return {
        "id": f"aime25/{paper}-{row.number}",
        "problem": row.text("question", "problem"),
        "expected_answer": plain_number(answer),
        "paper": paper,
    }


PREPARATION = Preparation(
    name="aime25",
    defaults=DEFAULTS,
    splits={
        "test": Split(urls=(f"{_FOLDER}/aime2025-I.jsonl", f"{_FOLDER}/aime2025-II.jsonl"), rows=30),
    },
    convert=convert,
)

if __name__ == "__main__":
    run(PREPARATION)
