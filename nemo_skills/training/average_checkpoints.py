"""Averaging main: the mean of checkpoints of one run, in fp32, as a model folder of its own.

`python -m nemo_skills.training.average_checkpoints --help` lists the settings.
"""

import time
from dataclasses import dataclass
from pathlib import Path

from nemo_skills.core.errors import UserError
from nemo_skills.core.hydra import MISSING, main, opt
from nemo_skills.core.log import get_logger
from nemo_skills.training.averaged_nemo import write_nemo
from nemo_skills.training.averaging import average
from nemo_skills.training.checkpoint_folders import find_checkpoints

LOG = get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class AverageConfig:
    """Which checkpoints to average, and where the result goes."""

    checkpoints_dir: str = opt(
        MISSING, "folder of the checkpoints, named step=100, checkpoint-100 or as NeMo's"
    )
    steps: list[int] | None = opt(None, "steps of the checkpoints to take; null takes all complete ones")
    output: str = opt(MISSING, "folder for the result")
    hf_model_name: str | None = opt(
        None, "folder or hub name of config and tokenizer, for NeMo checkpoints that have none"
    )
    nemo_output: str | None = opt(None, "folder for the same model as a NeMo checkpoint")
    max_shard_gb: float = opt(5.0, "size of a weight file above which another one is begun")

    def __post_init__(self) -> None:
        """Refuse what cannot be done."""
        if self.max_shard_gb <= 0:
            raise UserError("max_shard_gb must be positive")
        if self.steps is not None and not self.steps:
            raise UserError("steps is empty; leave it out to average all checkpoints")


@main(AverageConfig)
def average_checkpoints(config: AverageConfig) -> None:
    """Average the weights of checkpoints."""
    checkpoints = find_checkpoints(Path(config.checkpoints_dir), config.steps)
    steps = ", ".join(str(checkpoint.step) for checkpoint in checkpoints)
    LOG.info("averaging %d checkpoints of %s: steps %s", len(checkpoints), config.checkpoints_dir, steps)
    start = time.monotonic()
    shard_bytes = int(config.max_shard_gb * 1e9)
    done = average(checkpoints, Path(config.output), shard_bytes, config.hf_model_name)
    if done.nbytes:
        seconds = time.monotonic() - start
        read = done.nbytes * len(checkpoints) / 1e9
        LOG.info("wrote %s: read %.2f GB in %.1f s, %.2f GB/s", config.output, read, seconds, read / seconds)
    if config.nemo_output is not None:
        write_nemo(Path(config.output), Path(config.nemo_output))


if __name__ == "__main__":
    average_checkpoints()
