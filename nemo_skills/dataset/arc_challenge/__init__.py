"""Science questions of school examinations that simple methods fail at (ARC Challenge)."""

from nemo_skills.dataset.base import BenchmarkDefaults

DEFAULTS = BenchmarkDefaults(
    prompt_config="generic/multichoice",
    grader="multichoice",
    rows=1172,
    title="ARC Challenge",
    origin="https://allenai.org/data/arc",
    licence="CC BY-SA 4.0",
)
