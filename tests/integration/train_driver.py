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

from nemo_skills.training.engine import parallel
from nemo_skills.training.engine.job import build_run, go_on
from nemo_skills.training.engine.outcome import StopFlag
from tests.integration.train_runs import compose_task


def main() -> None:
    torch.set_num_threads(1)
    for case in json.loads(Path(sys.argv[1]).read_text()):
        config, task = compose_task(case["args"], case.get("algorithm", "sft"))
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
