"""Olympiad mathematics with open answers, in English and without images (of OlympiadBench)."""

from nemo_skills.dataset.base import BenchmarkDefaults

DEFAULTS = BenchmarkDefaults(
    prompt_config="generic/math",
    group_by=("subject",),
    rows=675,
    title="OlympiadBench",
    origin="https://github.com/OpenBMB/OlympiadBench",
    licence="Apache-2.0",
)
