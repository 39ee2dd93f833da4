"""Prepares AIME 2024: `python -m nemo_skills.dataset.aime24.prepare`."""

from functools import partial

from nemo_skills.dataset.aime24 import DEFAULTS
from nemo_skills.dataset.answers import competition_row
from nemo_skills.dataset.preparing import Preparation, Split, run

_FILE = "https://raw.githubusercontent.com/QwenLM/Qwen2.5-Math/main/evaluation/data/aime24/test.jsonl"

PREPARATION = Preparation(
    name="aime24",
    defaults=DEFAULTS,
    splits={"test": Split(urls=(_FILE,), rows=30)},
    convert=partial(competition_row, "aime24"),
)

if __name__ == "__main__":
    run(PREPARATION)
