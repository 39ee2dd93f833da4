"""Harder questions in 14 fields with up to ten options (MMLU-Pro)."""

from nemo_skills.dataset.base import BenchmarkDefaults

DEFAULTS = BenchmarkDefaults(
    prompt_config="generic/multichoice",
    grader="multichoice",
    group_by=("subject",),
    rows=12032,
    title="MMLU-Pro",
    origin="https://huggingface.co/datasets/TIGER-Lab/MMLU-Pro",
    licence="MIT",
)
