"""Prepares MATH: `python -m nemo_skills.dataset.math.prepare`."""

from nemo_skills.dataset.answers import boxed_answer
from nemo_skills.dataset.formats import Layout
from nemo_skills.dataset.math import DEFAULTS
from nemo_skills.dataset.preparing import Preparation, Split, run
from nemo_skills.dataset.rows import PreparedRow, SourceRow

_ARCHIVE = "https://people.eecs.berkeley.edu/~hendrycks/MATH.tar"


def convert(row: SourceRow) -> PreparedRow:
    """Take the answer out of the solution, which has it in a box."""
    level = row.text("level").removeprefix("Level ")
    return {
        "id": "/".join(row.file.removesuffix(".json").split("/")[-3:]),
        "problem": row.code("problem"),
        "expected_answer": boxed_answer(row),
        "reference_solution": row.code("solution"),
        "subject": row.text("type"),
        "level": int(level) if level.isdigit() else None,
    }


PREPARATION = Preparation(
    name="math",
    defaults=DEFAULTS,
    splits={
        "test": Split(urls=(_ARCHIVE,), rows=5000, layout=Layout(members="*test/*/*.json")),
        "train": Split(urls=(_ARCHIVE,), rows=7500, layout=Layout(members="*train/*/*.json")),
    },
    convert=convert,
)

if __name__ == "__main__":
    run(PREPARATION)
