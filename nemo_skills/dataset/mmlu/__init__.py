"""Knowledge in 57 subjects, four options each (MMLU)."""

from nemo_skills.dataset.base import BenchmarkDefaults

DEFAULTS = BenchmarkDefaults(
    prompt_config="generic/multichoice",
    grader="multichoice",
    group_by=("subject",),
    rows=14042,
    title="MMLU",
    origin="https://github.com/hendrycks/test",
    licence="MIT",
)
