"""Competition mathematics in seven subjects and five levels (MATH, also known as hendrycks_math)."""

from nemo_skills.dataset.base import BenchmarkDefaults

DEFAULTS = BenchmarkDefaults(
    prompt_config="generic/math",
    group_by=("subject", "level"),
    rows=5000,
    title="MATH",
    origin="https://github.com/hendrycks/math",
    licence="MIT",
)
