"""Stands in for the training main, whose arguments and files it shares: counts steps, and saves a number.

Tests put it into a user's repository. `++model.seed=13` lets it fail at step 6.
"""

import json
import math
import os
import signal
import struct
import sys
import time
from pathlib import Path

from nemo_skills.core.hydra import main
from nemo_skills.training.config import SftConfig

STEPS, SAVE_INTERVAL, STEP_S = 20, 5, 0.15


def save(folder: Path, step: int) -> None:
    """Write a checkpoint whose only weight is the step."""
    model = folder / "checkpoints" / f"step={step}" / "hf"
    model.mkdir(parents=True, exist_ok=True)
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    data = len(header).to_bytes(8, "little") + header + struct.pack("<f", step)
    (model / "model.safetensors").write_bytes(data)
    (model / "config.json").write_text('{"model_type": "stand-in"}')
    (model.parent / "complete.json").write_text("{}")


def train(folder: Path, seconds: float, seed: int) -> int:
    """Go on from the last checkpoint; returns the exit code."""
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda signum, _frame: asked.append(signum))
    started = time.monotonic()
    done = sorted(int(p.name.partition("=")[2]) for p in folder.glob("checkpoints/*"))
    first = done[-1] + 1 if done else 1
    print(f"starting at step {first}, world {os.environ.get('WORLD_SIZE', '1')}", flush=True)
    for step in range(first, STEPS + 1):
        time.sleep(STEP_S)
        if seed == 13 and step == 6:
            return 9
        stop = bool(asked) or time.monotonic() - started > seconds
        if step % SAVE_INTERVAL == 0 or stop:
            save(folder, step)
        if stop and step < STEPS:
            print(f"stopped after step {step}, by {'a signal' if asked else 'the clock'}", flush=True)
            return 3
    (folder / "finished.json").write_text("{}")
    return 0


@main(SftConfig)
def run(config: SftConfig) -> None:
    """Behave as the main does."""
    folder = Path(config.exp_manager.explicit_log_dir)
    if (folder / "finished.json").exists():
        print("all steps are done already", flush=True)
        return
    sys.exit(train(folder, config.exp_manager.seconds_per_run or math.inf, config.model.seed))


if __name__ == "__main__":
    run()
