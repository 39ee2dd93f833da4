"""Arithmetic word problems from four older sets (MAWPS)."""

from nemo_skills.dataset.base import BenchmarkDefaults

DEFAULTS = BenchmarkDefaults(
    prompt_config="generic/math",
    group_by=("subset",),
    rows=2065,
    title="MAWPS",
    origin="https://github.com/microsoft/ToRA",
)
