"""Prepares LiveCodeBench: `python -m nemo_skills.dataset.livecodebench.prepare`.

The split `v6` has the newest problems only; `release_v1` to `release_v6` have all up to then, 4.5 GB at last.
"""

import json

from nemo_skills.dataset.livecodebench import DEFAULTS
from nemo_skills.dataset.livecodebench.tests import Test, pack, unpack_origin
from nemo_skills.dataset.preparing import Preparation, Split, run
from nemo_skills.dataset.rows import PreparedRow, SourceRow

_FOLDER = (
    "https://huggingface.co/datasets/livecodebench/code_generation_lite/resolve/"
    "0fe84c3912ea0c4d4a78037083943e8f0c4dd505"
)
_FILES = ("test.jsonl", "test2.jsonl", "test3.jsonl", "test4.jsonl", "test5.jsonl", "test6.jsonl")
_RELEASES = (400, 511, 612, 713, 880, 1055)

_STDIN = "The program reads standard input and writes the answer to standard output."
_STARTER = "Fill in this code, and keep its names:\n\n```python\n{}\n```"


def convert(row: SourceRow) -> PreparedRow:
    """Put public and hidden tests together."""
    found = unpack_origin(row.code("public_test_cases")) + unpack_origin(row.code("private_test_cases"))
    tests = [Test(input=test["input"], output=test["output"]) for test in found]
    metadata = json.loads(row.code("metadata"))
    starter = row.values.get("starter_code") or ""
    kinds = {test.get("testtype") for test in found}
    if kinds not in ({"stdin"}, {"functional"}):
        raise row.error(f"its tests should all be of kind stdin or functional, not {kinds}")
    return {
        "id": row.text("question_id"),
        "problem": row.text("question_content"),
        "title": row.text("question_title"),
        "starter_code": starter,
        "format_note": _STARTER.format(starter) if starter else _STDIN,
        "test_type": kinds.pop(),
        "entry_point": metadata.get("func_name"),
        "tests": pack(tests),
        "platform": row.text("platform"),
        "difficulty": row.text("difficulty"),
        "date": row.text("contest_date"),
    }


def _urls(*files: str) -> tuple[str, ...]:
    return tuple(f"{_FOLDER}/{file}" for file in files)


PREPARATION = Preparation(
    name="livecodebench",
    defaults=DEFAULTS,
    splits={
        "v6": Split(urls=_urls(_FILES[-1]), rows=175),
        **{
            f"release_v{number}": Split(urls=_urls(*_FILES[:number]), rows=rows)
            for number, rows in enumerate(_RELEASES, start=1)
        },
    },
    convert=convert,
)

if __name__ == "__main__":
    run(PREPARATION)
