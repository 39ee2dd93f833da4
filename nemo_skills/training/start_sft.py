"""Supervised fine-tuning main.

One process: `python -m nemo_skills.training.start_sft ++model.restore_from_path=…`; several:
`torchrun --nproc-per-node N -m nemo_skills.training.start_sft …`. `--help` lists the settings.
"""

import sys
from typing import TYPE_CHECKING

from nemo_skills.core.hydra import main
from nemo_skills.training.config import SftConfig

if TYPE_CHECKING:
    from nemo_skills.training.metrics_log import OnMetrics

__all__ = ["SftConfig", "run", "start_sft"]


def start_sft(config: SftConfig, on_metrics: "OnMetrics | None" = None) -> None:
    """Fine-tune a model on prompts and responses; a rerun goes on from the last checkpoint.

    Exit code 0: all steps are done. 3: stopped after saving, by `exp_manager.max_time_per_run` or SIGTERM.
    Python code may give a function that gets the figures of every step.
    """
    # a launcher imports this module for the schema alone
    from nemo_skills.training.engine.outcome import STOPPED_EXIT_CODE, StopFlag, already_finished

    if already_finished(config, config.trainer.sft):
        return
    # from here on SIGTERM is heard; what follows takes seconds to import
    stop = StopFlag(config.exp_manager.seconds_per_run)
    from nemo_skills.training.engine.sft import train_sft

    if not train_sft(config, stop, on_metrics):
        sys.exit(STOPPED_EXIT_CODE)


run = main(SftConfig)(start_sft)

if __name__ == "__main__":
    run()
