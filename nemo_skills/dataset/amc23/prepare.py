"""Prepares AMC 2023: `python -m nemo_skills.dataset.amc23.prepare`."""

from nemo_skills.dataset.amc23 import DEFAULTS
from nemo_skills.dataset.answers import plain_number
from nemo_skills.dataset.preparing import Preparation, Split, run
from nemo_skills.dataset.rows import PreparedRow, SourceRow

_FILE = "https://raw.githubusercontent.com/QwenLM/Qwen2.5-Math/main/evaluation/data/amc23/test.jsonl"


def convert(row: SourceRow) -> PreparedRow:
    """Write answers, which the origin has with a decimal, as whole numbers where they are."""
    return {
        "id": f"amc23/{row.text('id')}",
        "problem": row.text("problem"),
        "expected_answer": plain_number(row.text("answer")),
    }


PREPARATION = Preparation(
    name="amc23", defaults=DEFAULTS, splits={"test": Split(urls=(_FILE,), rows=40)}, convert=convert
)

if __name__ == "__main__":
    run(PREPARATION)
