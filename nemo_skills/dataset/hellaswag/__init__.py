"""Which of four endings continues a text (HellaSwag)."""

from nemo_skills.dataset.base import BenchmarkDefaults

DEFAULTS = BenchmarkDefaults(
    prompt_config="generic/multichoice",
    eval_split="val",
    grader="multichoice",
    group_by=("split_type",),
    rows=10042,
    title="HellaSwag",
    origin="https://github.com/rowanz/hellaswag",
    licence="MIT",
)
