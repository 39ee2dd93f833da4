"""How full packs get and how fast they are planned, next to NeMo's first fit and to TRL's packing.

NeMo's algorithms are written here after their description: sequences in falling or random order, each put
into the first pack with room for it, where the sum of a pack is taken anew at every look. Their time grows
with the square of the number of sequences: the random order is measured at `sequences` (under 3 minutes), the
falling order at a tenth of that. For 300,000 sequences the printed time is extrapolated, NOT measured;
`speedup_vs_first_fit` is measured, theirs over ours at `sequences`. Times are processor seconds.
Lengths: log-normal with about 3.7 sequences to a pack of 16384, and GSM8K's training rows (question and
answer by the tokenizer of examples/tiny_model). `efficiency` is the filled share of the packs at 300,000
sequences, `plan_10m_*` wall time and peak memory of a process that plans ten million. TRL is given the tokens
too, as it plans and fills at once; it is left out where it is not installed (extra `trl`).
Run: `python benchmarks/packing.py [sequences]`. The last line is one JSON object.
"""

import functools
import importlib.util
import json
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nemo_skills.training.packing import Algorithm, plan_packs

PACK = 16_384
OURS: tuple[Algorithm, ...] = (
    "fewest_packs",
    "best_fit_decreasing",
    "first_fit_decreasing",
    "first_fit_shuffle",
)
BOUNDS = {"efficiency": 0.999, "speedup_vs_first_fit": 100, "plan_10m_s": 60, "plan_10m_gb": 4}
LARGE, HUGE, TRL_ROWS = 300_000, 10_000_000, 20_000
SHUFFLED, FALLING = "NeMo first fit, random order", "NeMo first fit, falling order"
Ints = npt.NDArray[np.int64]


def spec_like(count: int) -> Ints:
    """Draw lengths, about 3.7 to a pack."""
    drawn = np.random.default_rng(0).lognormal(np.log(4400) - 0.18, 0.6, count)
    return drawn.clip(1, PACK).astype(np.int64)


def first_fit(lengths: list[int], capacity: int) -> int:
    """Return how many packs NeMo's algorithm needs."""
    packs: list[list[int]] = []
    for length in lengths:
        for pack in packs:
            if sum(pack) + length <= capacity:
                pack.append(length)
                break
        else:
            packs.append([length])
    return len(packs)


def nemo(lengths: Ints, capacity: int, *, shuffled: bool) -> int:
    """Put sequences in NeMo's order, then pack."""
    ordered = sorted(lengths.tolist(), reverse=True)
    if shuffled:
        random.Random(0).shuffle(ordered)
    return first_fit(ordered, capacity)


def trl(lengths: Ints, capacity: int) -> int:
    """Pack tokens with TRL."""
    import pyarrow as pa
    from datasets import Dataset, disable_progress_bars
    from trl import pack_dataset

    disable_progress_bars()
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
    tokens = pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.zeros(offsets[-1], np.int8)))
    dataset = Dataset(pa.table({"input_ids": tokens}))
    return len(pack_dataset(dataset, seq_length=capacity, strategy="bfd"))


def gsm8k() -> Ints | None:
    """Return the lengths of GSM8K's training rows in tokens."""
    folder = Path(os.environ.get("NS_TEST_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
    source = folder / "gsm8k_train.jsonl"
    if not source.is_file():
        return None
    from nemo_skills.examples.tiny_model import build_tokenizer

    tokenizer = build_tokenizer()
    rows = map(json.loads, source.read_text().split("\n")[:-1])
    return np.array([len(tokenizer(row["question"] + row["answer"])["input_ids"]) for row in rows])


def measure(name: str, lengths: Ints, capacity: int, pack: Callable[[], int], repeats: int = 1) -> float:
    """Print the efficiency of a way to pack, and return its processor time."""
    best, packs = float("inf"), 0
    for _ in range(repeats):
        start = time.process_time()
        packs = pack()
        best = min(best, time.process_time() - start)
    share = 100 * lengths.sum() / (capacity * packs)
    print(f"  {name:32} {packs:9,} packs  {share:7.3f} %  {best:9.3f} s", flush=True)
    return best


def compare(title: str, lengths: Ints, capacity: int, peers: tuple[str, ...] = ()) -> dict[str, float]:
    """Print a table, and return the processor times."""
    fewest = -(-int(lengths.sum()) // capacity)
    print(f"{title}: {len(lengths):,} sequences, packs of {capacity}, at least {fewest:,} packs")
    times = {}
    for name in OURS:
        plan = functools.partial(plan_packs, lengths, capacity, name)
        times[name] = measure(name, lengths, capacity, lambda p=plan: len(p()), repeats=2)  # type: ignore[misc]
    for name in peers:
        pack = functools.partial(nemo, lengths, capacity, shuffled=name == SHUFFLED)
        times[name] = measure(name, lengths, capacity, pack)
    return times


def plan_huge() -> None:
    """Plan ten million sequences, alone in this process."""
    lengths = spec_like(HUGE)
    start = time.perf_counter()
    plan = plan_packs(lengths, PACK)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(json.dumps({"s": seconds, "gb": peak, "efficiency": plan.efficiency}))


def main() -> int:
    """Measure, print, and fail when a bound is broken."""
    if sys.argv[1:] == ["--huge"]:
        plan_huge()
        return 0
    size = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    compare("Spec-like lengths", spec_like(size // 10), PACK, (SHUFFLED, FALLING))
    times = compare("Spec-like lengths", spec_like(size), PACK, (SHUFFLED,))
    large = spec_like(LARGE)
    compare("Spec-like lengths", large, PACK)
    print(f"  {SHUFFLED}: not measured here, {(LARGE / size) ** 2 * times[SHUFFLED]:.0f} s extrapolated")
    lengths = gsm8k()
    if lengths is None:
        print("GSM8K: gsm8k_train.jsonl is absent; NS_TEST_DATA names the folder that holds it")
    for capacity in (2048, 4096) if lengths is not None else ():
        compare("GSM8K", lengths, capacity, (SHUFFLED, FALLING))
    if all(importlib.util.find_spec(name) for name in ("trl", "datasets")):
        some = spec_like(TRL_ROWS)
        print(f"With TRL, which fills the packs too: {TRL_ROWS:,} sequences")
        measure("fewest_packs", some, PACK, lambda: len(plan_packs(some, PACK)))
        measure("TRL bfd", some, PACK, lambda: trl(some, PACK))
    else:
        print("TRL is not installed (extra `trl`)")
    huge = json.loads(subprocess.check_output([sys.executable, __file__, "--huge"]))
    print(f"{HUGE:,} sequences: {huge['s']:.1f} s, {huge['gb']:.2f} GB, {100 * huge['efficiency']:.3f} %")
    figures = {
        "efficiency": round(plan_packs(large, PACK).efficiency, 5),
        "speedup_vs_first_fit": round(times[SHUFFLED] / times[OURS[0]], 1),
        "plan_10m_s": round(huge["s"], 1),
        "plan_10m_gb": round(huge["gb"], 2),
    }
    print(json.dumps({"benchmark": "packing", "sequences": size, **figures, "bounds": BOUNDS}))
    full = figures["efficiency"] >= BOUNDS["efficiency"]
    fast = figures["speedup_vs_first_fit"] >= BOUNDS["speedup_vs_first_fit"]
    return 0 if full and fast and all(figures[n] <= BOUNDS[n] for n in ("plan_10m_s", "plan_10m_gb")) else 1


if __name__ == "__main__":
    sys.exit(main())
