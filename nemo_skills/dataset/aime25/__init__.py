"""American Invitational Mathematics Examination 2025, both papers."""

from nemo_skills.dataset.base import BenchmarkDefaults

DEFAULTS = BenchmarkDefaults(
    prompt_config="generic/math",
    group_by=("paper",),
    rows=30,
    title="AIME 2025",
    origin="https://huggingface.co/datasets/opencompass/AIME2025",
)
