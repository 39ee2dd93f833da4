"""Prepares SVAMP: `python -m nemo_skills.dataset.svamp.prepare`."""

from nemo_skills.dataset.answers import plain_number
from nemo_skills.dataset.preparing import Preparation, Split, run
from nemo_skills.dataset.rows import PreparedRow, SourceRow
from nemo_skills.dataset.svamp import DEFAULTS

_FILE = "https://raw.githubusercontent.com/arkilpatel/SVAMP/main/SVAMP.json"


def convert(row: SourceRow) -> PreparedRow:
    """Put the story and the question together."""
    body = row.text("Body")
    end = "" if body.endswith((".", "?", "!", ",")) else "."
    return {
        "id": row.text("ID"),
        "problem": f"{body}{end} {row.text('Question')}",
        "expected_answer": plain_number(row.text("Answer")),
        "subject": row.text("Type"),
    }


PREPARATION = Preparation(
    name="svamp", defaults=DEFAULTS, splits={"test": Split(urls=(_FILE,), rows=1000)}, convert=convert
)

if __name__ == "__main__":
    run(PREPARATION)
