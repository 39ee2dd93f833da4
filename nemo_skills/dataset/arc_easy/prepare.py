"""Prepares ARC Easy: `python -m nemo_skills.dataset.arc_easy.prepare`."""

from nemo_skills.dataset.arc_challenge.prepare import convert, splits
from nemo_skills.dataset.arc_easy import DEFAULTS
from nemo_skills.dataset.preparing import Preparation, run

PREPARATION = Preparation(
    name="arc-easy",
    defaults=DEFAULTS,
    splits=splits("Easy", test=2376, train=2251, dev=570),
    convert=convert,
)

if __name__ == "__main__":
    run(PREPARATION)
