"""Prepares GPQA: `python -m nemo_skills.dataset.gpqa.prepare`.

Its authors ask not to publish the questions where crawlers read them: keep prepared files private.
"""

from nemo_skills.dataset.choices import choice_row, shuffled
from nemo_skills.dataset.formats import Layout
from nemo_skills.dataset.gpqa import DEFAULTS
from nemo_skills.dataset.preparing import Preparation, Split, run
from nemo_skills.dataset.rows import PreparedRow, SourceRow

_ARCHIVE = "https://github.com/idavidrein/gpqa/raw/main/dataset.zip"
_WRONG = ("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")


def convert(row: SourceRow) -> PreparedRow:
    """Bring the options into an order that is the same every time."""
    problem = row.text("Question")
    options, correct = shuffled(problem, row.text("Correct Answer"), [row.text(key) for key in _WRONG])
    return {
        "id": row.text("Record ID"),
        **choice_row(row, problem, options, correct),
        "subject": row.text("High-level domain"),
        "subdomain": row.text("Subdomain"),
    }


def _split(name: str, rows: int) -> Split:
    # the password is in the authors' README
    layout = Layout(members=f"*gpqa_{name}.csv", password=b"deserted-untie-orchid")
    return Split(urls=(_ARCHIVE,), rows=rows, layout=layout)


PREPARATION = Preparation(
    name="gpqa",
    defaults=DEFAULTS,
    splits={
        "diamond": _split("diamond", 198),
        "main": _split("main", 448),
        "extended": _split("extended", 546),
    },
    convert=convert,
)

if __name__ == "__main__":
    run(PREPARATION)
