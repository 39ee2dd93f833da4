"""Prepares IFEval: `python -m nemo_skills.dataset.ifeval.prepare`."""

from nemo_skills.dataset.ifeval import DEFAULTS
from nemo_skills.dataset.preparing import Preparation, Split, run
from nemo_skills.dataset.rows import PreparedRow, SourceRow

_FILE = (
    "https://raw.githubusercontent.com/google-research/google-research/master/"
    "instruction_following_eval/data/input_data.jsonl"
)


def convert(row: SourceRow) -> PreparedRow:
    """Keep the instructions and their arguments, without those that some copies fill with nulls."""
    names, arguments = row.texts("instruction_id_list"), row.get("kwargs")
    if not isinstance(arguments, list) or len(arguments) != len(names):
        raise row.error("'kwargs' should have one entry for each of 'instruction_id_list'")
    return {
        "id": f"ifeval/{row.text('key')}",
        "problem": row.code("prompt"),
        "instruction_id_list": names,
        "kwargs": [{key: value for key, value in (a or {}).items() if value is not None} for a in arguments],
    }


PREPARATION = Preparation(
    name="ifeval", defaults=DEFAULTS, splits={"test": Split(urls=(_FILE,), rows=541)}, convert=convert
)

if __name__ == "__main__":
    run(PREPARATION)
