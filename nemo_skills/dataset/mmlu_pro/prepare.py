"""Prepares MMLU-Pro: `python -m nemo_skills.dataset.mmlu_pro.prepare`; needs pyarrow."""

from nemo_skills.dataset.choices import choice_row, letter_index
from nemo_skills.dataset.mmlu_pro import DEFAULTS
from nemo_skills.dataset.preparing import Preparation, Split, run
from nemo_skills.dataset.rows import PreparedRow, SourceRow

_FOLDER = "https://huggingface.co/datasets/TIGER-Lab/MMLU-Pro/resolve/main/data"


def convert(row: SourceRow) -> PreparedRow:
    """Rename the fields."""
    correct = letter_index(row, row.text("answer"))
    return {
        "id": f"mmlu-pro/{row.text('question_id')}",
        **choice_row(row, row.text("question"), row.texts("options"), correct),
        "subject": row.text("category"),
    }


PREPARATION = Preparation(
    name="mmlu-pro",
    defaults=DEFAULTS,
    splits={
        "test": Split(urls=(f"{_FOLDER}/test-00000-of-00001.parquet",), rows=12032),
        "validation": Split(urls=(f"{_FOLDER}/validation-00000-of-00001.parquet",), rows=70),
    },
    convert=convert,
)

if __name__ == "__main__":
    run(PREPARATION)
