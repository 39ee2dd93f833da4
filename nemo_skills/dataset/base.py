"""What a benchmark's folder declares."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class BenchmarkDefaults:
    """Defaults of a benchmark, which users can override."""

    prompt_config: str
    """Prompt used unless another is given."""

    eval_split: str
    """Split that scores are reported on."""
