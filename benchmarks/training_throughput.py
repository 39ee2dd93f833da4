"""Speed of training over TRL's trainer, of packed over unpacked data, and of averaging over cp.

Training counts tokens a second; averaging counts the bytes of the checkpoints, which cp reads and writes.
Every figure is a ratio of runs in this process that take turns, with the same model, rows and settings; model
loading, tokenising and saving do not count for TRL, and do count for us where they happen inside of a step.
Run: `python benchmarks/training_throughput.py [rounds]`. The last line is one JSON object.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from nemo_skills.examples import tiny_model
from tests.integration.train_runs import compose_sft, sft_args, write_rows

BOUNDS = {"vs_trl": 1.0, "packed_speedup": 1.0, "averaging_vs_cp": 0.5}
ROWS, BATCH = 640, 32
CHECKPOINTS, MATRICES = 4, 32


def ours(args: list[str]) -> float:
    """Return the seconds that the steps of our main take."""
    from nemo_skills.training.engine import loop
    from nemo_skills.training.engine.outcome import StopFlag
    from nemo_skills.training.engine.parallel import start
    from nemo_skills.training.engine.sft import build_run

    config = compose_sft(args)
    run = build_run(config, start(config.model, config.trainer))
    trainer = loop.Trainer(run, _NoCheckpoints(), None, StopFlag(None))  # type: ignore[arg-type]
    begun = time.perf_counter()
    trainer.train(loop.Progress())
    return time.perf_counter() - begun


class _NoCheckpoints:
    """TRL's trainer is told to save nothing either."""

    def save(self, *_: object) -> Path:
        return Path("nowhere")


def vs_trl(folder: Path, rounds: int) -> float:
    """Return our tokens a second over TRL's."""
    from tests.integration.trl_runs import timed, trl_trainer

    model, rows = folder / "model", folder / "rows.jsonl"
    args = [
        *sft_args(model, rows, folder / "ours", trainer__sft__max_epochs=1),
        f"++model.data.train_ds.global_batch_size={BATCH}",
        f"++model.data.train_ds.micro_batch_size={BATCH}",
        "++model.data.train_ds.shuffle=False",
    ]

    def theirs() -> float:
        return timed(
            trl_trainer(model, rows, folder / "trl", per_device_train_batch_size=BATCH, num_train_epochs=1)
        )

    return _ratio(theirs, lambda: ours(args), rounds, "TRL", "ours")


def packed_speedup(folder: Path, rounds: int) -> float:
    """Return tokens a second of packed data over those of rows that come one at a time."""
    from tests.integration.train_runs import pack_rows

    model, rows = folder / "model", folder / "rows.jsonl"
    packed, packs = pack_rows(rows, model, folder / "packed", size=2048)
    common = {"trainer__sft__max_epochs": 1}
    unpacked = [
        *sft_args(model, rows, folder / "unpacked", **common),
        "++model.data.train_ds.micro_batch_size=1",
        f"++model.data.train_ds.global_batch_size={BATCH}",
    ]
    together = [
        *sft_args(model, packed, folder / "with-packs", **common),
        "++model.data.train_ds.packed_sequence=True",
        "++model.data.train_ds.micro_batch_size=1",
        # about as many rows in a step
        f"++model.data.train_ds.global_batch_size={max(1, round(BATCH * packs / ROWS))}",
    ]
    return _ratio(lambda: ours(unpacked), lambda: ours(together), rounds, "unpacked", "packed")


def averaging_vs_cp(folder: Path, rounds: int) -> float:
    """Return the bytes a second of averaging checkpoints over those of cp of these checkpoints."""
    import torch
    from safetensors.torch import save_file

    from nemo_skills.training.averaging import average
    from nemo_skills.training.checkpoint_folders import find_checkpoints

    source, copy, mean = folder / "checkpoints", folder / "copy", folder / "mean"
    for step in range(CHECKPOINTS):
        model = source / f"checkpoint-{step}"
        model.mkdir(parents=True)
        tensors = {f"layer{i}": torch.randn(2048, 2048).bfloat16() for i in range(MATRICES)}
        save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})

    def cp() -> float:
        shutil.rmtree(copy, ignore_errors=True)
        begun = time.perf_counter()
        subprocess.run(["cp", "-r", source, copy], check=True)
        return time.perf_counter() - begun

    def averaging() -> float:
        shutil.rmtree(mean, ignore_errors=True)
        begun = time.perf_counter()
        average(find_checkpoints(source), mean, 5 * 10**9)
        return time.perf_counter() - begun

    return _ratio(cp, averaging, rounds, "cp", "averaging")


def _ratio(
    slow: Callable[[], float], fast: Callable[[], float], rounds: int, first: str, second: str
) -> float:
    """Run both in turns; return how many times faster the second one is, by medians."""
    times: tuple[list[float], list[float]] = ([], [])
    for attempt in range(rounds + 1):
        for measured, run in zip(times, (slow, fast), strict=True):
            seconds = run()
            # the first round warms up
            if attempt:
                measured.append(seconds)
    medians = [statistics.median(measured) for measured in times]
    for name, seconds in zip((first, second), medians, strict=True):
        print(f"{name:10} {seconds:6.2f} s")
    return round(medians[0] / medians[1], 2)


def main() -> int:
    """Measure, print, and fail when a bound is broken."""
    import torch

    torch.set_num_threads(1)
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny_model.build(folder / "model")
        write_rows(folder / "rows.jsonl", ROWS)
        figures = {
            "vs_trl": vs_trl(folder, rounds),
            "packed_speedup": packed_speedup(folder, rounds),
            "averaging_vs_cp": averaging_vs_cp(folder, rounds),
        }
    print(json.dumps({"benchmark": "training_throughput", "rounds": rounds, **figures, "bounds": BOUNDS}))
    return 0 if all(figures[key] >= bound for key, bound in BOUNDS.items()) else 1


if __name__ == "__main__":
    sys.exit(main())
