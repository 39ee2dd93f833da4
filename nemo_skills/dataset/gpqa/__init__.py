"""Questions of biology, physics and chemistry that searching the web does not answer (GPQA)."""

from nemo_skills.dataset.base import BenchmarkDefaults

DEFAULTS = BenchmarkDefaults(
    prompt_config="generic/multichoice",
    eval_split="diamond",
    grader="multichoice",
    group_by=("subject",),
    rows=198,
    title="GPQA",
    origin="https://github.com/idavidrein/gpqa",
    licence="CC BY 4.0",
)
