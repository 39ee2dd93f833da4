"""Prepares AIME 2024: `python -m nemo_skills.dataset.aime24.prepare`."""

from nemo_skills.dataset.aime24 import DEFAULTS
from nemo_skills.dataset.answers import plain_number
from nemo_skills.dataset.preparing import Preparation, Split, run
from nemo_skills.dataset.rows import PreparedRow, SourceRow

_FILE = "https://raw.githubusercontent.com/QwenLM/Qwen2.5-Math/main/evaluation/data/aime24/test.jsonl"


def convert(row: SourceRow) -> PreparedRow:
    """Write answers, whole numbers that the examination pads to three digits, without zeros in front."""
    return {
        "id": f"aime24/{row.text('id')}",
        "problem": row.text("problem"),
        "expected_answer": plain_number(row.text("answer")),
    }


PREPARATION = Preparation(
    name="aime24", defaults=DEFAULTS, splits={"test": Split(urls=(_FILE,), rows=30)}, convert=convert
)

if __name__ == "__main__":
    run(PREPARATION)
