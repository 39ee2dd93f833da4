"""Diverse word problems of elementary school (ASDiv)."""

from nemo_skills.dataset.base import BenchmarkDefaults

DEFAULTS = BenchmarkDefaults(
    prompt_config="generic/math",
    group_by=("grade", "subject"),
    rows=2305,
    title="ASDiv",
    origin="https://github.com/chaochun/nlu-asdiv-dataset",
    licence="CC BY-NC 4.0",
)
