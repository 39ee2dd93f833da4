"""Starts the shipped stub server and the generation main as real processes."""

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]
TIMING = ("generation_time", "generation_start_time", "generation_end_time")


@dataclass
class Stub:
    """A running stub server."""

    url: str
    process: subprocess.Popen[str]

    @property
    def requests(self) -> int:
        """How many generation requests it has received."""
        with urllib.request.urlopen(f"{self.url.removesuffix('/v1')}/metrics") as answer:
            found = re.search(r"^vllm:request_total\S* (\d+)", answer.read().decode(), re.MULTILINE)
        assert found
        return int(found[1])


@contextmanager
def running_stub(**options: Any) -> Iterator[Stub]:
    """Start a stub with options such as `error_rate=0.2`; it ends with the block."""
    argv = [sys.executable, "-m", "nemo_skills.inference.server.stub"]
    for name, value in options.items():
        argv += [f"--{name.replace('_', '-')}", str(value)]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert "listens on" in line, line
        yield Stub(line.split()[-1], process)
    finally:
        process.kill()
        process.wait()


def main_argv(url: str | None, source: Path, output: Path, **overrides: Any) -> list[str]:
    """Return the command line of the generation main; `server__x=1` stands for `server.x=1`."""
    values = {
        "input_file": source,
        "output_file": output,
        "prompt_config": "generic/default",
        "server.server_type": "stub",
        **({"server.address": url} if url else {}),
        **{name.replace("__", "."): value for name, value in overrides.items()},
    }
    argv = [sys.executable, "-m", "nemo_skills.inference.generate"]
    return argv + [f"++{name}={value}" for name, value in values.items() if value is not None]


def run_main(
    url: str | None, source: Path, output: Path, *, env: dict[str, str] | None = None, **overrides: Any
) -> subprocess.CompletedProcess[str]:
    """Run the main to its end."""
    return subprocess.run(
        main_argv(url, source, output, **overrides),
        capture_output=True, text=True, timeout=120, env={**os.environ, **(env or {})},
    )  # fmt: skip


def write_rows(path: Path, count: int, start: int = 0) -> Path:
    """Write an input of numbered questions."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = ({"question": f"What is {i} + {i}? ✓", "id": i} for i in range(start, start + count))
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def untimed(path: Path) -> list[str]:
    """Return the lines of an output without what differs between equal runs."""
    pattern = re.compile("|".join(f',"{name}":[0-9.]+' for name in TIMING))
    return [pattern.sub("", line) for line in path.read_text(encoding="utf-8").splitlines()]


def gsm8k(count: int) -> list[str]:
    """Return the first rows of GSM8K, or shipped word problems, repeated, where it is not there."""
    shipped = REPO / "nemo_skills" / "examples" / "word_problems.jsonl"
    folders = [Path(os.environ.get("NS_TEST_DATA", "/nowhere")), REPO.parent / "shared" / "data"]
    source = next((f / "gsm8k_test.jsonl" for f in folders if (f / "gsm8k_test.jsonl").is_file()), None)
    if source is None:
        lines = shipped.read_text(encoding="utf-8").replace('"problem":', '"question":').splitlines()
    else:
        lines = source.read_text(encoding="utf-8").splitlines()
    return (lines * (count // len(lines) + 1))[:count]


def wait_for(condition: Any, seconds: float = 20.0) -> None:
    """Wait until a function returns something true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)
