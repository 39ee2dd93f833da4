"""500 problems of the test split of MATH, chosen by the authors of PRM800K."""

from nemo_skills.dataset.base import BenchmarkDefaults

DEFAULTS = BenchmarkDefaults(
    prompt_config="generic/math",
    group_by=("subject", "level"),
    rows=500,
    title="MATH-500",
    origin="https://github.com/openai/prm800k",
    licence="MIT",
)
