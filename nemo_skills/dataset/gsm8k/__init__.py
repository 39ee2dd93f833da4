"""Grade-school math word problems (GSM8K)."""

from nemo_skills.dataset.base import BenchmarkDefaults

DEFAULTS = BenchmarkDefaults(
    prompt_config="generic/math",
    rows=1319,
    title="GSM8K",
    origin="https://github.com/openai/grade-school-math",
    licence="MIT",
)
