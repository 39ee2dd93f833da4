"""What a benchmark's folder declares."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class BenchmarkDefaults:
    """Defaults of a benchmark, which users can override.

    A benchmark is a folder whose `__init__.py` has such a value, named `DEFAULTS`.
    """

    prompt_config: str
    """Prompt used unless another is given."""

    eval_split: str = "test"
    """Split that scores are reported on."""

    grader: str = "math"
    """What grades answers: the `eval_type` of `nemo_skills.evaluation.evaluate`."""

    grader_options: tuple[str, ...] = ()
    """Arguments for the grader's main, such as `++timeout_s=30`."""

    generation_args: tuple[str, ...] = ()
    """Arguments for the generation main, such as `++inference.tokens_to_generate=4096`."""

    needs_sandbox: bool = False
    """Whether grading runs code of the model's, and so needs a sandbox."""

    group_by: tuple[str, ...] = ()
    """Fields of its rows by which scores are broken down."""

    rows: int | None = None
    """How many rows the complete `eval_split` has, where that is known."""

    title: str = ""
    """What people call it."""

    origin: str = ""
    """Where its authors, or those who maintain it now, publish it."""

    licence: str | None = None
    """Licence of the data, where it is known."""
