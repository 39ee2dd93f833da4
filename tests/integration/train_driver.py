"""Started by torchrun: trains one configuration after the other in the same processes.

The argument is a JSON file: a list of {"args": [...]} as the main takes them, with "algorithm" if it is not
"sft". Into each output folder goes `shards.json`: for every matrix of the layers, which share of it each
process has.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from nemo_skills.core.hydra import compose
from nemo_skills.training.config import SftConfig, TrainingConfig
from nemo_skills.training.dpo_config import DpoConfig
from nemo_skills.training.engine import parallel
from nemo_skills.training.engine.dpo import dpo_task
from nemo_skills.training.engine.job import Task, build_run, go_on
from nemo_skills.training.engine.outcome import StopFlag
from nemo_skills.training.engine.sft import sft_task


def composed(args: list[str], algorithm: str) -> tuple[TrainingConfig, Task]:
    """Return the configuration of a main, and its task."""
    if algorithm == "dpo":
        preferences = compose(DpoConfig, args)
        return preferences, dpo_task(preferences)
    config = compose(SftConfig, args)
    return config, sft_task(config)


def main() -> None:
    torch.set_num_threads(1)
    for case in json.loads(Path(sys.argv[1]).read_text()):
        config, task = composed(case["args"], case.get("algorithm", "sft"))
        topology = parallel.start(config.model, config.trainer)
        run = build_run(config, task, topology)
        shares = {
            name: p.to_local().numel() / p.numel() if isinstance(p, DTensor) else None
            for name, p in run.training.model.named_parameters()
            if p.ndim > 1 and "layers." in name
        }
        assert go_on(run, config, StopFlag(None))
        if topology.is_main:
            Path(config.exp_manager.explicit_log_dir, "shards.json").write_text(json.dumps(shares))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
