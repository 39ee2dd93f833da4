"""Prepares Minerva math: `python -m nemo_skills.dataset.minerva_math.prepare`."""

from nemo_skills.dataset.answers import boxed_answer
from nemo_skills.dataset.minerva_math import DEFAULTS
from nemo_skills.dataset.preparing import Preparation, Split, run
from nemo_skills.dataset.rows import PreparedRow, SourceRow

_FILE = "https://raw.githubusercontent.com/QwenLM/Qwen2.5-Math/main/evaluation/data/minerva_math/test.jsonl"


def convert(row: SourceRow) -> PreparedRow:
    """Take the answer out of the solution, which has it in a box."""
    return {
        "id": f"minerva-math/{row.text('idx')}",
        "problem": row.text("problem"),
        "expected_answer": boxed_answer(row),
        "reference_solution": row.code("solution"),
        "subject": row.text("type"),
    }


PREPARATION = Preparation(
    name="minerva-math", defaults=DEFAULTS, splits={"test": Split(urls=(_FILE,), rows=272)}, convert=convert
)

if __name__ == "__main__":
    run(PREPARATION)
