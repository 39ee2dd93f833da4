"""Prepares MATH-500: `python -m nemo_skills.dataset.math_500.prepare`."""

from nemo_skills.dataset.math_500 import DEFAULTS
from nemo_skills.dataset.preparing import Preparation, Split, run
from nemo_skills.dataset.rows import PreparedRow, SourceRow

_FILE = "https://huggingface.co/datasets/HuggingFaceH4/MATH-500/resolve/main/test.jsonl"


def convert(row: SourceRow) -> PreparedRow:
    """Rename the fields."""
    return {
        "id": row.text("unique_id").removesuffix(".json"),
        "problem": row.code("problem"),
        "expected_answer": row.text("answer"),
        "reference_solution": row.code("solution"),
        "subject": row.text("subject"),
        "level": int(row.text("level")),
    }


PREPARATION = Preparation(
    name="math-500", defaults=DEFAULTS, splits={"test": Split(urls=(_FILE,), rows=500)}, convert=convert
)

if __name__ == "__main__":
    run(PREPARATION)
