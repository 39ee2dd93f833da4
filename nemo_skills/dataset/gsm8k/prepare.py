"""Prepares GSM8K: `python -m nemo_skills.dataset.gsm8k.prepare`."""

import re

from nemo_skills.dataset.gsm8k import DEFAULTS
from nemo_skills.dataset.preparing import Preparation, Split, run
from nemo_skills.dataset.rows import PreparedRow, SourceRow

_ORIGIN = "https://raw.githubusercontent.com/openai/grade-school-math/master/grade_school_math/data"
_FINAL_ANSWER = re.compile(r"\s*#### *(-?[\d,]*\.?\d+)\s*$")
_CALCULATION = re.compile(r"<<[^<>]*>>")


def convert(row: SourceRow) -> PreparedRow:
    """Set the answer apart, and remove the calculator annotations from the solution."""
    answer = row.code("answer")
    final = _FINAL_ANSWER.search(answer)
    if final is None:
        raise row.error("the answer does not end with '#### <number>'")
    return {
        "problem": row.code("question"),
        "expected_answer": final.group(1).replace(",", ""),
        "reference_solution": _CALCULATION.sub("", answer[: final.start()]),
    }


PREPARATION = Preparation(
    name="gsm8k",
    defaults=DEFAULTS,
    splits={
        "test": Split(
            urls=(f"{_ORIGIN}/test.jsonl",),
            rows=1319,
            sha256="86cb5c3a531e7d2f35f9b9620bef0481c4e2755b306a553218dbd6f31ab1fefb",
        ),
        "train": Split(
            urls=(f"{_ORIGIN}/train.jsonl",),
            rows=7473,
            sha256="351f785c60d420e9a5a80a9d2b09ce9a3406e23f8a4a458ffde19cf6eb2b6348",
        ),
    },
    convert=convert,
)

if __name__ == "__main__":
    run(PREPARATION)
