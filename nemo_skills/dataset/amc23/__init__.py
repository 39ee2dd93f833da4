"""American Mathematics Competitions 2023: the problems whose answer needs no options."""

from nemo_skills.dataset.base import BenchmarkDefaults

DEFAULTS = BenchmarkDefaults(
    prompt_config="generic/math",
    rows=40,
    title="AMC 2023",
    origin="https://github.com/QwenLM/Qwen2.5-Math",
)
