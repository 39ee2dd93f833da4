"""Prepares MBPP: `python -m nemo_skills.dataset.mbpp.prepare`.

The split `plus` has the checked tasks of EvalPlus and more tests, `test` the 500 of the original.
"""

import re

from nemo_skills.dataset.mbpp import DEFAULTS
from nemo_skills.dataset.preparing import Preparation, Split, run
from nemo_skills.dataset.rows import PreparedRow, SourceRow

_FILE = "https://raw.githubusercontent.com/google-research/google-research/master/mbpp/mbpp.jsonl"
# later revisions have the same tasks as Parquet
_PLUS = (
    "https://huggingface.co/datasets/evalplus/mbppplus/resolve/9a36f31e81d5e1670b68e6de8ef23da0c4e1abb5/"
    "test.jsonl"
)
_TEST_IDS = range(11, 511)
_FUNCTION = re.compile(r"^def +(\w+) *\(", re.MULTILINE)


def convert(row: SourceRow) -> PreparedRow:
    """Join the assertions; the function's name, which the sentence does not say, is in them."""
    tests, code = row.texts("test_list"), row.code("code")
    called = set(re.findall(r"\w+", tests[0]))
    names = [name for name in _FUNCTION.findall(code) if name in called]
    setup = "\n".join([*row.values.get("test_imports", ()), row.values.get("test_setup_code", "")]).strip()
    plus = row.values.get("test")
    return {
        "id": f"Mbpp/{row.text('task_id')}",
        "problem": row.text("prompt", "text"),
        "preamble": setup,
        "entry_point": names[-1] if names else None,
        "example_test": tests[0],
        "test": "\n".join([setup, *tests]).strip() + "\n",
        "plus_test": plus,
        "reference_solution": code,
    }


PREPARATION = Preparation(
    name="mbpp",
    defaults=DEFAULTS,
    splits={
        "plus": Split(urls=(_PLUS,), rows=378),
        "test": Split(urls=(_FILE,), rows=500, keep=lambda row: row.get("task_id") in _TEST_IDS),
    },
    convert=convert,
)

if __name__ == "__main__":
    run(PREPARATION)
