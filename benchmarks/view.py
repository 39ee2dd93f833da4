"""How soon `ns view` shows a file of a million rows: the first page, and the last one.

The server is a process of its own; the time is that of a request, to its last byte. `wc -l` of the same file
is the limit for anything that reads it. Memory is the server's at the end.

Run: `python benchmarks/view.py [--rows 1000000]`. The last line is one JSON object.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

BOUNDS = {"open_s": 2.0, "rss_mb": 200.0}


def write(path: Path, rows: int) -> None:
    """Write rows of about 1 kB each."""
    text = "The answer is $x^2$. " * 45
    with path.open("w") as file:
        for i in range(rows):
            file.write(f'{{"id":{i},"problem":"Q{i}","generation":"{text}","verdict":"correct"}}\n')


def fetch(url: str) -> float:
    """Return how long a page takes, in seconds."""
    began = time.perf_counter()
    with urllib.request.urlopen(url) as answer:
        answer.read()
    return time.perf_counter() - began


def resident_mb(pid: int) -> float:
    """Return the memory of a process in MB."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) / 1000


def main() -> int:
    """Measure, print, and fail when a bound is broken."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows: int = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "output.jsonl"
        write(path, rows)
        began = time.perf_counter()
        subprocess.run(["wc", "-l", str(path)], check=True, capture_output=True)
        wc_s = time.perf_counter() - began
        argv = [sys.executable, "-m", "nemo_skills.pipeline.cli", "view", name]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout is not None
                found = re.search(r"http://\S+", server.stdout.readline())
                assert found
                fetch(found[0])
                open_s = fetch(f"{found[0]}file/0")
                last_s = fetch(f"{found[0]}file/0?row={rows - 20}")
                rss_mb = resident_mb(server.pid)
            finally:
                server.terminate()
    result = {
        "open_s": round(open_s, 3),
        "last_s": round(last_s, 3),
        "wc_s": round(wc_s, 3),
        "rss_mb": rss_mb,
    }
    print(json.dumps({"benchmark": "view", "rows": rows, **result, "bounds": BOUNDS}))
    return 0 if all(result[name] <= bound for name, bound in BOUNDS.items()) else 1


if __name__ == "__main__":
    sys.exit(main())
