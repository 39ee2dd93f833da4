"""Programming contests after a date (LiveCodeBench, code generation, the lite version)."""

from nemo_skills.dataset.base import BenchmarkDefaults

DEFAULTS = BenchmarkDefaults(
    prompt_config="code/livecodebench",
    eval_split="v6",
    grader="code",
    needs_sandbox=True,
    group_by=("difficulty", "platform"),
    rows=175,
    title="LiveCodeBench",
    origin="https://huggingface.co/datasets/livecodebench/code_generation_lite",
    licence="CC",
)
