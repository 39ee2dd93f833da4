"""Instructions that a program can check (IFEval)."""

from nemo_skills.dataset.base import BenchmarkDefaults

DEFAULTS = BenchmarkDefaults(
    prompt_config="generic/instruction",
    grader="ifeval",
    rows=541,
    title="IFEval",
    origin="https://github.com/google-research/google-research/tree/master/instruction_following_eval",
    licence="Apache-2.0",
)
