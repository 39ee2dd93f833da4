"""Prepares ASDiv: `python -m nemo_skills.dataset.asdiv.prepare`."""

import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from typing import IO, Any

from nemo_skills.core.errors import UserError
from nemo_skills.dataset.answers import plain_number, without_unit
from nemo_skills.dataset.asdiv import DEFAULTS
from nemo_skills.dataset.formats import Layout
from nemo_skills.dataset.preparing import Preparation, Split, run
from nemo_skills.dataset.rows import PreparedRow, SourceRow

_FILE = "https://raw.githubusercontent.com/chaochun/nlu-asdiv-dataset/master/dataset/ASDiv.xml"


def read_problems(file: IO[bytes], where: str) -> Iterator[Mapping[str, Any]]:
    """Yield the problems of the XML file: attributes and child elements by name."""
    try:
        root = ET.parse(file).getroot()  # noqa: S314 (expat refuses entities that grow without bound)
    except ET.ParseError as error:
        raise UserError(f"{where}: not XML: {error}") from None
    for problem in root.iter("Problem"):
        yield {**problem.attrib, **{child.tag: child.text or "" for child in problem}}


def convert(row: SourceRow) -> PreparedRow:
    """Take the units off the answers, of which a problem may have several."""
    answers = [plain_number(without_unit(answer.strip())) for answer in row.text("Answer").split(";")]
    return {
        "id": row.text("ID"),
        "problem": f"{row.text('Body')} {row.text('Question')}",
        "expected_answer": ", ".join(answers),
        "grade": row.text("Grade"),
        "subject": row.text("Solution-Type"),
    }


PREPARATION = Preparation(
    name="asdiv",
    defaults=DEFAULTS,
    splits={"test": Split(urls=(_FILE,), rows=2305, layout=Layout(readers={".xml": read_problems}))},
    convert=convert,
)

if __name__ == "__main__":
    run(PREPARATION)
