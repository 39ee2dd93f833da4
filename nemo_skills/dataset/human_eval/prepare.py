"""Prepares HumanEval with the tests of HumanEval+: `python -m nemo_skills.dataset.human_eval.prepare`."""

from collections.abc import Iterable, Iterator

from nemo_skills.core.errors import UserError
from nemo_skills.dataset.human_eval import DEFAULTS
from nemo_skills.dataset.preparing import Preparation, Split, run
from nemo_skills.dataset.rows import PreparedRow, SourceRow

_FILE = "https://raw.githubusercontent.com/openai/human-eval/master/data/HumanEval.jsonl.gz"
_PLUS = (
    "https://github.com/evalplus/humanevalplus_release/releases/download/v0.1.10/"
    "HumanEvalPlus-OriginFmt.jsonl.gz"
)


def combine(rows: Iterable[SourceRow]) -> Iterator[SourceRow]:
    """Put the tests of both files into one row."""
    plain: dict[str, SourceRow] = {}
    more: dict[str, str] = {}
    for row in rows:
        if "plus" in row.file.lower():
            more[row.text("task_id")] = row.code("test")
        else:
            plain[row.text("task_id")] = row
    if missing := [task for task in plain if task not in more] or [
        task for task in more if task not in plain
    ]:
        raise UserError(
            f"{missing[0]} is in one file only; HumanEval.jsonl and HumanEvalPlus-OriginFmt.jsonl are"
            " both needed"
        )
    for task, row in plain.items():
        values = {**row.values, "plus_test": more[task]}
        yield SourceRow(values=values, file=row.file, number=row.number)


def convert(row: SourceRow) -> PreparedRow:
    """Make the tests run by themselves, and set apart what stands before the function."""
    prompt, name = row.code("prompt"), row.text("entry_point")
    start = prompt.rfind(f"def {name}(")
    if start < 0:
        raise row.error(f"its prompt does not define {name}")
    return {
        "id": row.text("task_id"),
        "problem": prompt,
        "preamble": prompt[:start],
        "entry_point": name,
        "test": f"{row.code('test')}\n\ncheck({name})\n",
        "plus_test": f"{row.code('plus_test')}\n\ncheck({name})\n",
        "reference_solution": prompt + row.code("canonical_solution"),
    }


PREPARATION = Preparation(
    name="human-eval",
    defaults=DEFAULTS,
    splits={"test": Split(urls=(_FILE, _PLUS), rows=164)},
    convert=convert,
    combine=combine,
)

if __name__ == "__main__":
    run(PREPARATION)
