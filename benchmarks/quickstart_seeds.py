"""What the quickstart's model scores before and after training, for several seeds of weights and data.

Every run is the whole quickstart: real training, a real model server, real grading. The figures are shares of
held-out problems answered right: the largest before training, the smallest after it.

Run: `python benchmarks/quickstart_seeds.py [--seeds 3]`. The last line is one JSON object.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BOUNDS = {"before_max": 0.05, "after_min": 0.9}
METRICS = Path("eval-results") / "arithmetic" / "metrics.json"


def share(folder: Path) -> float:
    """Return the share of right answers that an evaluation found."""
    report = json.loads((folder / METRICS).read_text())
    return float(report["metrics"]["pass@1"]["symbolic_correct"]["value"]) / 100


def quickstart(seed: int, folder: Path) -> tuple[float, float]:
    """Run it; returns the shares before and after."""
    argv = [
        sys.executable,
        "-m",
        "nemo_skills.examples.quickstart",
        f"--seed={seed}",
        f"--output_dir={folder}",
    ]
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    try:
        return share(folder / "eval-before"), share(folder / "eval-after")
    except (OSError, KeyError, ValueError):
        raise SystemExit(done.stdout[-3000:] + done.stderr[-3000:]) from None


def main() -> int:
    """Measure, print, and fail when a bound is broken."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    befores, afters = [], []
    for seed in range(args.seeds):
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as name:
            before, after = quickstart(seed, Path(name) / "quickstart")
        print(f"seed {seed}: {before:.3f} to {after:.3f} in {time.monotonic() - began:.0f} s", flush=True)
        befores.append(before)
        afters.append(after)
    result = {"before_max": max(befores), "after_min": min(afters)}
    print(json.dumps({"benchmark": "quickstart_seeds", "seeds": args.seeds, **result, "bounds": BOUNDS}))
    good = result["before_max"] <= BOUNDS["before_max"] and result["after_min"] >= BOUNDS["after_min"]
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
