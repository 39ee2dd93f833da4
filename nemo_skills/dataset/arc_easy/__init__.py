"""Science questions of school examinations that simple methods answer (ARC Easy)."""

from nemo_skills.dataset.base import BenchmarkDefaults

DEFAULTS = BenchmarkDefaults(
    prompt_config="generic/multichoice",
    grader="multichoice",
    rows=2376,
    title="ARC Easy",
    origin="https://allenai.org/data/arc",
    licence="CC BY-SA 4.0",
)
