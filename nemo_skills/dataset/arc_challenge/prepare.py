"""Prepares ARC Challenge: `python -m nemo_skills.dataset.arc_challenge.prepare`."""

from nemo_skills.dataset.arc_challenge import DEFAULTS
from nemo_skills.dataset.choices import choice_row
from nemo_skills.dataset.formats import Layout
from nemo_skills.dataset.preparing import Preparation, Split, run
from nemo_skills.dataset.rows import PreparedRow, SourceRow

_ARCHIVE = "https://ai2-public-datasets.s3.amazonaws.com/arc/ARC-V1-Feb2018.zip"


def convert(row: SourceRow) -> PreparedRow:
    """Letter the options anew: some questions number theirs."""
    question = row.get("question")
    choices = question["choices"]
    labels = [choice["label"] for choice in choices]
    answer = row.text("answerKey")
    if answer not in labels:
        raise row.error(f"the answer '{answer}' is not among the options {', '.join(labels)}")
    options = [choice["text"].strip() for choice in choices]
    return {"id": row.text("id"), **choice_row(row, question["stem"].strip(), options, labels.index(answer))}


def splits(kind: str, test: int, train: int, dev: int) -> dict[str, Split]:
    """Return the splits of one half of ARC, Challenge or Easy, with these numbers of rows."""
    rows = {"test": test, "train": train, "dev": dev}
    return {
        name: Split(
            urls=(_ARCHIVE,), rows=count, layout=Layout(members=f"*ARC-{kind}-{name.capitalize()}.jsonl")
        )
        for name, count in rows.items()
    }


PREPARATION = Preparation(
    name="arc-challenge",
    defaults=DEFAULTS,
    splits=splits("Challenge", test=1172, train=1119, dev=299),
    convert=convert,
)

if __name__ == "__main__":
    run(PREPARATION)
