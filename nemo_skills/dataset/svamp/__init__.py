"""Arithmetic word problems that vary other sets' problems (SVAMP)."""

from nemo_skills.dataset.base import BenchmarkDefaults

DEFAULTS = BenchmarkDefaults(
    prompt_config="generic/math",
    group_by=("subject",),
    rows=1000,
    title="SVAMP",
    origin="https://github.com/arkilpatel/SVAMP",
    licence="MIT",
)
