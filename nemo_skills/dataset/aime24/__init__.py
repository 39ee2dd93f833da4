"""American Invitational Mathematics Examination 2024, both papers."""

from nemo_skills.dataset.base import BenchmarkDefaults

DEFAULTS = BenchmarkDefaults(
    prompt_config="generic/math",
    rows=30,
    title="AIME 2024",
    origin="https://github.com/QwenLM/Qwen2.5-Math",
)
