"""Main of DPO, fine-tuning on pairs of a better and a worse answer.

One process: `python -m nemo_skills.training.start_dpo ++model.restore_from_path=…`; several:
`torchrun --nproc-per-node N -m nemo_skills.training.start_dpo …`. `--help` lists the settings.
"""

import sys
from typing import TYPE_CHECKING

from nemo_skills.core.hydra import main
from nemo_skills.training.dpo_config import DpoConfig

if TYPE_CHECKING:
    from nemo_skills.training.metrics_log import OnMetrics

__all__ = ["DpoConfig", "run", "start_dpo"]


def start_dpo(config: DpoConfig, on_metrics: "OnMetrics | None" = None) -> None:
    """Fine-tune a model on pairs of answers; a rerun goes on from the last checkpoint.

    Exit code 0: all steps are done. 3: stopped after saving, by `exp_manager.max_time_per_run` or SIGTERM.
    Python code may give a function that gets the figures of every step.
    """
    # a launcher imports this module for the schema alone
    from nemo_skills.training.engine.outcome import STOPPED_EXIT_CODE, StopFlag, already_finished

    if already_finished(config, config.trainer.dpo):
        return
    # from here on SIGTERM is heard; what follows takes seconds to import
    stop = StopFlag(config.exp_manager.seconds_per_run)
    from nemo_skills.training.engine.dpo import train_dpo

    if not train_dpo(config, stop, on_metrics):
        sys.exit(STOPPED_EXIT_CODE)


run = main(DpoConfig)(start_dpo)

if __name__ == "__main__":
    run()
