"""Undergraduate science and mathematics from open courses (Minerva's OCWCourses)."""

from nemo_skills.dataset.base import BenchmarkDefaults

DEFAULTS = BenchmarkDefaults(
    prompt_config="generic/math",
    group_by=("subject",),
    rows=272,
    title="Minerva math",
    origin="https://github.com/QwenLM/Qwen2.5-Math",
)
