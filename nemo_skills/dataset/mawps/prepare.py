"""Prepares MAWPS: `python -m nemo_skills.dataset.mawps.prepare`."""

from pathlib import PurePosixPath

from nemo_skills.dataset.answers import plain_number
from nemo_skills.dataset.mawps import DEFAULTS
from nemo_skills.dataset.preparing import Preparation, Split, run
from nemo_skills.dataset.rows import PreparedRow, SourceRow

_FOLDER = "https://raw.githubusercontent.com/microsoft/ToRA/main/src/data/mawps"
_SUBSETS = ("addsub", "singleeq", "singleop", "multiarith")


def convert(row: SourceRow) -> PreparedRow:
    """Tell the subsets apart by the names of their files."""
    subset = PurePosixPath(row.file).stem
    return {
        "id": f"{subset}/{row.number}",
        "problem": row.text("input"),
        "expected_answer": plain_number(row.text("target")),
        "subset": subset,
    }


PREPARATION = Preparation(
    name="mawps",
    defaults=DEFAULTS,
    splits={"test": Split(urls=tuple(f"{_FOLDER}/{subset}.jsonl" for subset in _SUBSETS), rows=2065)},
    convert=convert,
)

if __name__ == "__main__":
    run(PREPARATION)
