"""Python functions to be written from their docstrings, with the tests of EvalPlus (HumanEval+)."""

from nemo_skills.dataset.base import BenchmarkDefaults

DEFAULTS = BenchmarkDefaults(
    prompt_config="code/human-eval",
    grader="code",
    grader_options=("++grader.plus_packages=[numpy]",),
    needs_sandbox=True,
    rows=164,
    title="HumanEval, HumanEval+",
    origin="https://github.com/openai/human-eval, https://github.com/evalplus/evalplus",
    licence="MIT, Apache-2.0",
)
