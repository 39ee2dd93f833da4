"""Generation main without a server: this process loads the model itself.

`python -m nemo_skills.inference.generate_offline --help` lists the settings: those of the generation main,
and a few about processes and the engine, which `server.server_type` names (hf, vllm or trtllm).
"""

from nemo_skills.inference.offline.environment import offline_main
from nemo_skills.inference.offline.rows_config import OfflineConfig

__all__ = ["OfflineConfig", "generate_offline", "run"]


def generate_offline(config: OfflineConfig) -> None:
    """Answer every row of a JSONL file, without a server; a rerun goes on from the finished rows."""
    # a launcher imports this module for the schema alone
    from nemo_skills.core.log import setup_logging
    from nemo_skills.inference.offline.job import Launch, run_offline
    from nemo_skills.inference.offline.rows import RowsTask

    setup_logging(config.log_level)
    task = RowsTask(config)
    launch = Launch(
        spec=task.spec,
        batch=config.batch,
        python=config.engine_python,
        devices=config.devices,
        nodes=config.nodes,
        resume=config.skip_filled,
    )
    run_offline(task, launch)


run = offline_main(OfflineConfig, generate_offline)

if __name__ == "__main__":
    run()
