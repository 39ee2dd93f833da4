"""Prepares MMLU: `python -m nemo_skills.dataset.mmlu.prepare`."""

from pathlib import PurePosixPath

from nemo_skills.dataset.choices import choice_row, letter_index
from nemo_skills.dataset.formats import Layout, csv_reader
from nemo_skills.dataset.mmlu import DEFAULTS
from nemo_skills.dataset.preparing import Preparation, Split, run
from nemo_skills.dataset.rows import PreparedRow, SourceRow

_ARCHIVE = "https://people.eecs.berkeley.edu/~hendrycks/data.tar"
_LETTERS = ("A", "B", "C", "D")
_READERS = {".csv": csv_reader("question", *_LETTERS, "answer")}


def convert(row: SourceRow) -> PreparedRow:
    """Take the subject from the name of the file."""
    subject = PurePosixPath(row.file).stem.rpartition("_")[0]
    options = [row.text(letter) for letter in _LETTERS]
    correct = letter_index(row, row.text("answer"))
    return {
        "id": f"{subject}/{row.number}",
        **choice_row(row, row.text("question"), options, correct),
        "subject": subject,
    }


def _split(name: str, rows: int) -> Split:
    return Split(
        urls=(_ARCHIVE,), rows=rows, layout=Layout(members=f"*{name}/*_{name}.csv", readers=_READERS)
    )


PREPARATION = Preparation(
    name="mmlu",
    defaults=DEFAULTS,
    splits={"test": _split("test", 14042), "val": _split("val", 1531), "dev": _split("dev", 285)},
    convert=convert,
)

if __name__ == "__main__":
    run(PREPARATION)
