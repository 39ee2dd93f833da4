"""Prepares HellaSwag, whose test split has no answers: `python -m nemo_skills.dataset.hellaswag.prepare`."""

from nemo_skills.dataset.choices import choice_row
from nemo_skills.dataset.hellaswag import DEFAULTS
from nemo_skills.dataset.preparing import Preparation, Split, run
from nemo_skills.dataset.rows import PreparedRow, SourceRow

_FOLDER = "https://raw.githubusercontent.com/rowanz/hellaswag/master/data"


def convert(row: SourceRow) -> PreparedRow:
    """Ask for the ending in words."""
    label = row.text("label")
    if not label.isdigit():
        raise row.error(f"'label' should be the number of an ending, not '{label}'")
    text = f"{row.text('activity_label')}: {row.text('ctx')}"
    return {
        "id": f"hellaswag/{row.text('ind')}",
        **choice_row(
            row, f"Which ending continues this text best?\n\n{text}", row.texts("endings"), int(label)
        ),
        "split_type": row.text("split_type"),
    }


PREPARATION = Preparation(
    name="hellaswag",
    defaults=DEFAULTS,
    splits={
        "val": Split(urls=(f"{_FOLDER}/hellaswag_val.jsonl",), rows=10042),
        "train": Split(urls=(f"{_FOLDER}/hellaswag_train.jsonl",), rows=39905),
    },
    convert=convert,
)

if __name__ == "__main__":
    run(PREPARATION)
