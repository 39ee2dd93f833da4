"""Prepares AMC 2023: `python -m nemo_skills.dataset.amc23.prepare`."""

from functools import partial

from nemo_skills.dataset.amc23 import DEFAULTS
from nemo_skills.dataset.answers import competition_row
from nemo_skills.dataset.preparing import Preparation, Split, run

_FILE = "https://raw.githubusercontent.com/QwenLM/Qwen2.5-Math/main/evaluation/data/amc23/test.jsonl"

PREPARATION = Preparation(
    name="amc23",
    defaults=DEFAULTS,
    splits={"test": Split(urls=(_FILE,), rows=40)},
    convert=partial(competition_row, "amc23"),
)

if __name__ == "__main__":
    run(PREPARATION)
