"""How fast and how lean data preparation is, next to a plain `json` loop and to `datasets.map`.

All do the same: keep correct and complete answers, drop duplicates of a problem, keep two answers of each
problem by lot, put a hundredth of the problems aside, write prompt and answer with the tags of Llama 3,
shuffle, write JSONL. The loop holds the data in memory; so does `datasets`, in Arrow files that it maps.
`vs_json_loop` compares rows of the input per second of processor time, all processes together: the speed of a
core. `vs_datasets_map` compares rows per second, two processes against two. Both are medians of interleaved
runs. Memory is the peak of the resident set, summed over all processes of a run, at the smaller and at the
larger number of rows.
`datasets` comes with the extra `trl`, and is left out where it is not installed.
Run: `python benchmarks/prepare_data.py [rows] [large] [repeats]`. The last line is one JSON object.
"""

import importlib.util
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import psutil

BOUNDS = {"vs_json_loop": 0.5, "rss_2m_vs_100k": 1.3}
SAMPLES = 4
WORDS = [
    *("train", "station", "leaves", "minutes", "past", "nine", "travels", "steady", "speed", "kilometres"),
    *("hour", "how", "far", "come", "noon", "stops", "twice", "quarter", "bakery", "rolls", "bag", "sold"),
    *("loose", "left", "bake", "Saturday", "choir", "singers", "altos", "half", "others", "sopranos"),
]
BEGIN = "<|start_header_id|>{}<|end_header_id|>\n\n"
QUESTION = (
    "Work out the answer to the mathematics problem below. Explain your reasoning one step at a time, then"
    " finish with the final answer, and only the answer, inside \\boxed{{}}.\n\n{problem}"
)
PROMPT = f"{BEGIN.format('user')}{QUESTION}<|eot_id|>{BEGIN.format('assistant')}"


def write_rows(path: Path, rows: int) -> None:
    """Write graded answers, four to a problem."""
    dice = random.Random(0)
    with path.open("w") as file:
        for number in range(rows):
            problem = number // SAMPLES
            words = random.Random(problem).choices(WORDS, k=40)
            answer = " ".join(dice.choices(WORDS, k=60)) if dice.random() < 0.8 else "same"
            row = {
                "id": problem, "problem": f"{problem}: {' '.join(words)}?", "expected_answer": str(problem),
                "generation": f"{answer}. The answer is \\boxed{{{problem}}}.",
                "predicted_answer": str(problem),
                "verdict": dice.choice(["correct", "correct", "correct", "incorrect"]),
                "finish_reason": "length" if dice.random() < 0.05 else "stop",
                "num_generated_tokens": 77, "generation_time": 1.2345,
            }  # fmt: skip
            file.write(json.dumps(row) + "\n")


def training_row(row: dict[str, Any]) -> dict[str, Any]:
    """Return what is written for a row."""
    return {
        "input": PROMPT.format(problem=row["problem"]), "output": row["generation"].strip() + "<|eot_id|>",
        "id": row["id"], "problem": row["problem"], "expected_answer": row["expected_answer"],
        "num_generated_tokens": row["num_generated_tokens"],
    }  # fmt: skip


def is_good(row: dict[str, Any]) -> bool:
    """Tell whether a row is correct and complete."""
    return row["verdict"] == "correct" and row["finish_reason"] != "length"


def json_loop(source: Path, output: Path) -> None:
    """Do it with the standard library."""
    dice = random.Random(0)
    problems: dict[str, list[dict[str, Any]]] = defaultdict(list)
    seen: set[tuple[str, str]] = set()
    with source.open() as file:
        for line in file:
            row = json.loads(line)
            if not is_good(row):
                continue
            key = (row["problem"], " ".join(row["generation"].lower().split()))
            if key not in seen:
                seen.add(key)
                problems[row["problem"]].append(row)
    lines: tuple[list[str], list[str]] = ([], [])
    for rows in problems.values():
        kept = lines[dice.random() < 0.01]
        for row in dice.sample(rows, 2) if len(rows) > 2 else rows:
            kept.append(json.dumps(training_row(row)))
    for part, name in zip(lines, ("", "-validation"), strict=True):
        dice.shuffle(part)
        output.with_name(f"{output.stem}{name}.jsonl").write_text("\n".join(part) + "\n")


def datasets_map(source: Path, output: Path) -> None:
    """Do it with `datasets`; grouping is beyond it, so that the first two answers of a problem are kept."""
    import datasets

    datasets.disable_progress_bars()
    cache = str(output.parent / "cache")
    rows = datasets.load_dataset("json", data_files=str(source), split="train", cache_dir=cache)
    rows = rows.filter(is_good, num_proc=2)
    seen: set[tuple[str, str]] = set()
    counts: dict[str, int] = defaultdict(int)

    def is_new(row: dict[str, Any]) -> bool:
        key = (row["problem"], " ".join(row["generation"].lower().split()))
        new = key not in seen and counts[row["problem"]] < 2
        counts[row["problem"]] += new
        seen.add(key)
        return new

    rows = rows.filter(is_new, new_fingerprint="is_new")
    rows = rows.map(training_row, num_proc=2, remove_columns=rows.column_names)
    rows.shuffle(seed=0).to_json(str(output), num_proc=2)


def ours(source: Path, output: Path, processes: int) -> list[str]:
    """Return the command of a run."""
    return [
        sys.executable, "-m", "nemo_skills.training.prepare_data", f"++input_files={source}",
        f"++output_path={output}", "++prompt_template=llama3-instruct", "++validation_size=0.01",
        "++processors.sample.max_samples=2", f"++processes={processes}", "++log_level=ERROR",
    ]  # fmt: skip


def peer(name: str, source: Path, output: Path) -> list[str]:
    """Return the command of a peer."""
    return [sys.executable, __file__, "--peer", name, str(source), str(output)]


class Usage:
    """Runs a command, and watches the memory of its processes."""

    def __init__(self, argv: list[str]) -> None:
        started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        self.peak = 0
        process = subprocess.Popen(argv)
        watcher = threading.Thread(target=self._watch, args=(psutil.Process(process.pid),))
        watcher.start()
        if process.wait():
            raise SystemExit(f"{argv} failed")
        self.seconds = time.perf_counter() - started
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.core_seconds = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
        watcher.join()

    def _watch(self, parent: psutil.Process) -> None:
        while True:
            try:
                family = [parent, *parent.children(recursive=True)]
                used = sum(self._used(process) for process in family)
            except psutil.Error:
                return
            if not used:
                return
            self.peak = max(self.peak, used)
            time.sleep(0.05)

    @staticmethod
    def _used(process: psutil.Process) -> int:
        try:
            return int(process.memory_info().rss)
        except psutil.Error:
            return 0


def main() -> int:
    """Measure, print, and fail when a bound is broken."""
    if sys.argv[1:2] == ["--peer"]:
        {"loop": json_loop, "datasets": datasets_map}[sys.argv[2]](Path(sys.argv[3]), Path(sys.argv[4]))
        return 0
    rows, large, repeats = (
        int(arg) for arg in (*sys.argv[1:], *("100000", "2000000", "3")[len(sys.argv) - 1 :])
    )
    have_datasets = importlib.util.find_spec("datasets") is not None
    used: dict[str, list[Usage]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, output = folder / "in.jsonl", folder / "out" / "out.jsonl"
        output.parent.mkdir()
        write_rows(source, rows)
        for _ in range(repeats):
            used["ours_1"].append(Usage(ours(source, output, 1)))
            used["loop"].append(Usage(peer("loop", source, output)))
            used["ours_2"].append(Usage(ours(source, output, 2)))
            if have_datasets:
                used["datasets"].append(
                    Usage(peer("datasets", source, output.parent / f"{time.time()}.jsonl"))
                )
        write_rows(source, large)
        used["large_2"].append(Usage(ours(source, output, 2)))
    seconds = {what: statistics.median(run.seconds for run in runs) for what, runs in used.items()}
    peaks = {what: max(run.peak for run in runs) / 1e6 for what, runs in used.items()}
    cores = {what: statistics.median(run.core_seconds for run in runs) for what, runs in used.items()}
    for what in used:
        count = large if what.startswith("large") else rows
        speeds = f"{count / seconds[what]:8.0f} rows/s, {count / cores[what]:8.0f} per core"
        print(f"{what:12} {speeds} {peaks[what]:8.0f} MB")
    report = {
        "benchmark": "prepare_data", "rows": rows, "large": large, "repeats": repeats,
        "rows_per_s": round(rows / seconds["ours_2"]), "rows_per_s_large": round(large / seconds["large_2"]),
        "vs_json_loop": round(cores["loop"] / cores["ours_1"], 2),
        "vs_json_loop_two_processes": round(cores["loop"] / cores["ours_2"], 2),
        "vs_json_loop_wall": round(seconds["loop"] / seconds["ours_1"], 2),
        "vs_datasets_map": round(seconds["datasets"] / seconds["ours_2"], 2) if have_datasets else None,
        "rss_mb": round(peaks["ours_2"]), "rss_mb_large": round(peaks["large_2"]),
        "rss_mb_loop": round(peaks["loop"]),
        "rss_2m_vs_100k": round(peaks["large_2"] / peaks["ours_2"], 2),
        "bounds": BOUNDS,
    }  # fmt: skip
    print(json.dumps(report))
    lean = report["rss_2m_vs_100k"] <= BOUNDS["rss_2m_vs_100k"]
    return 0 if lean and report["vs_json_loop"] >= BOUNDS["vs_json_loop"] else 1


if __name__ == "__main__":
    sys.exit(main())
