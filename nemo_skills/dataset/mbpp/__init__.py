"""Python functions to be written from a sentence, with the tests of EvalPlus (MBPP+)."""

from nemo_skills.dataset.base import BenchmarkDefaults

DEFAULTS = BenchmarkDefaults(
    prompt_config="code/mbpp",
    eval_split="plus",
    grader="code",
    grader_options=("++grader.plus_packages=[numpy]",),
    needs_sandbox=True,
    rows=378,
    title="MBPP, MBPP+",
    origin="https://github.com/google-research/google-research/tree/master/mbpp, https://github.com/evalplus/evalplus",
    licence="CC BY 4.0, Apache-2.0",
)
