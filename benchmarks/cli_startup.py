"""How long `ns --help` and `ns generate --help` take, over `python -c "import typer"`.

The start of Python itself is inside all of them. Runs are interleaved: a noisy machine slows all alike.
Run: `python benchmarks/cli_startup.py [repeats]`. The last line is one JSON object.
"""

import json
import statistics
import subprocess
import sys
import time

BOUNDS = {"ns_help_vs_typer": 4.0, "generate_help_vs_typer": 8.0}
NS = "import sys; from nemo_skills.pipeline.cli import main; sys.exit(main())"
PROGRAMS = {
    "typer": [sys.executable, "-c", "import typer"],
    "ns_help": [sys.executable, "-c", NS, "--help"],
    "generate_help": [sys.executable, "-c", NS, "generate", "--help"],
}


def seconds(argv: list[str]) -> float:
    """Run a program once and return its wall time."""
    start = time.perf_counter()
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> int:
    """Measure, print, and fail when a bound is broken."""
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 25
    times: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for attempt in range(repeats + 1):
        for name, argv in PROGRAMS.items():
            taken = seconds(argv)
            # the first round fills the file cache and writes bytecode
            if attempt:
                times[name].append(taken)
    median = {name: statistics.median(values) for name, values in times.items()}
    for name, value in median.items():
        print(f"{name:15} {value * 1000:7.1f} ms   ({min(times[name]) * 1000:.1f} at best)")
    ratios = {
        "ns_help_vs_typer": round(median["ns_help"] / median["typer"], 2),
        "generate_help_vs_typer": round(median["generate_help"] / median["typer"], 2),
    }
    print(json.dumps({"benchmark": "cli_startup", "repeats": repeats, **ratios, "bounds": BOUNDS}))
    return 0 if all(ratios[name] <= bound for name, bound in BOUNDS.items()) else 1


if __name__ == "__main__":
    sys.exit(main())
