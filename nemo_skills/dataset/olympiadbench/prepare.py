"""Prepares OlympiadBench: `python -m nemo_skills.dataset.olympiadbench.prepare`."""

from nemo_skills.dataset.olympiadbench import DEFAULTS
from nemo_skills.dataset.preparing import Preparation, Split, run
from nemo_skills.dataset.rows import PreparedRow, SourceRow

_FILE = "https://raw.githubusercontent.com/QwenLM/Qwen2.5-Math/main/evaluation/data/olympiadbench/test.jsonl"


def convert(row: SourceRow) -> PreparedRow:
    """Join the answers, of which a problem may have several."""
    answers = [answer.strip("$ ") for answer in row.texts("final_answer")]
    return {
        "id": f"olympiadbench/{row.text('id')}",
        "problem": row.text("question"),
        "expected_answer": ", ".join(answers),
        "subject": row.values.get("subfield"),
        "answer_type": row.values.get("answer_type"),
        "unit": row.values.get("unit"),
    }


PREPARATION = Preparation(
    name="olympiadbench", defaults=DEFAULTS, splits={"test": Split(urls=(_FILE,), rows=675)}, convert=convert
)

if __name__ == "__main__":
    run(PREPARATION)
