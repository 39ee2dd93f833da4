"""Grade-school math word problems (GSM8K)."""

from nemo_skills.dataset.base import BenchmarkDefaults

DEFAULTS = BenchmarkDefaults(prompt_config="generic/math", eval_split="test")
