"""Final answers, found in what benchmarks' authors wrote."""

import re

from nemo_skills.dataset.rows import PreparedRow, SourceRow
from nemo_skills.evaluation.graders.mathematics.extraction import last_boxed

_UNIT = re.compile(r"\s*\([^()]*\)\s*$")


def plain_number(text: str) -> str:
    """Return a whole number without leading zeros, decimals or commas; any other text as it is."""
    plain = text.replace(",", "") if re.fullmatch(r"-?\d{1,3}(,\d{3})+(\.\d+)?", text) else text
    if re.fullmatch(r"-?\d+(\.0*)?", plain):
        return str(int(plain.partition(".")[0]))
    return plain


def without_unit(text: str) -> str:
    """Return an answer without the unit in brackets behind it: `9 (apples)` is 9."""
    return _UNIT.sub("", text)


def boxed_answer(row: SourceRow) -> str:
    """Return the answer that a row's solution has in a box."""
    answer = last_boxed(row.code("solution"))
    if answer is None:
        raise row.error("the solution has no \\boxed answer")
    return answer


def competition_row(benchmark: str, row: SourceRow) -> PreparedRow:
    """Return a problem with a numeric answer, which origins pad with zeros or give a decimal."""
    return {
        "id": f"{benchmark}/{row.text('id')}",
        "problem": row.text("problem"),
        "expected_answer": plain_number(row.text("answer")),
    }
