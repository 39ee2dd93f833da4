"""Requests per second and memory of the generation main, of the plain openai client, and of bare aiohttp.

All are processes of their own that ask the shipped stub server, which has its own process too, the same
questions with as many requests in flight. Runs are interleaved. A rate is requests per second of processor
time of the client ("per core"), because a client shares its machine with others and the stub is a Python
program as well; it is the difference between a long and a short run, so that starting up does not count. Our
main does more than the others: it reads and checks rows, writes a journal, orders the output.

Memory is the peak of the main's resident set with 1,000,000 rows and with 10,000, to its very end.

Run: `python benchmarks/client_throughput.py [--rows 1000000] [--rounds 3]`. The last line is one JSON object.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

BOUNDS = {"vs_aiohttp": 0.6, "vs_openai": 3.0, "rss_1m_vs_10k": 1.3}
IN_FLIGHT = 256
SHORT, LONG, LONG_OPENAI = 1_000, 30_000, 4_000
FEW_ROWS = 10_000


class Cost(NamedTuple):
    """What a process used."""

    wall_s: float
    processor_s: float
    peak_mb: float


class Rate(NamedTuple):
    """Requests per second."""

    wall: float
    per_core: float


def ask_with_openai(url: str, messages: Iterator[list[dict[str, str]]]) -> Callable[[], Awaitable[None]]:
    """Return a worker that uses the openai client as its documentation shows."""
    from openai import AsyncOpenAI

    client = AsyncOpenAI(base_url=url, api_key="none")

    async def work() -> None:
        for prompt in messages:
            answer = await client.chat.completions.create(
                model="stub", messages=prompt, temperature=0.0, max_tokens=2048, seed=0
            )
            assert answer.choices[0].message.content

    return work


def ask_with_aiohttp(url: str, messages: Iterator[list[dict[str, str]]]) -> Callable[[], Awaitable[None]]:
    """Return a worker that sends what has to be sent and takes the text out of the answer, and no more."""
    import aiohttp
    import orjson

    connector = aiohttp.TCPConnector(limit=IN_FLIGHT)
    headers = {"Content-Type": "application/json"}
    session = aiohttp.ClientSession(connector=connector, headers=headers)

    async def work() -> None:
        for prompt in messages:
            body = {"model": "stub", "messages": prompt, "temperature": 0.0, "max_tokens": 2048, "seed": 0}
            async with session.post(f"{url}/chat/completions", data=orjson.dumps(body)) as response:
                answer = orjson.loads(await response.read())
            assert answer["choices"][0]["message"]["content"]

    return work


def drive(client: str, url: str, source: str) -> None:
    """Ask about every row of a file; this is what runs in the processes of the other clients."""
    import orjson

    async def run() -> None:
        with Path(source).open("rb") as file:
            rows = (orjson.loads(line) for line in file)
            messages = ([{"role": "user", "content": row["question"]}] for row in rows)
            work = {"openai": ask_with_openai, "aiohttp": ask_with_aiohttp}[client](url, messages)
            await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))

    asyncio.run(run())


def cost(argv: list[str]) -> Cost:
    """Run a program to its end."""
    start = time.perf_counter()
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{argv} failed:\n{said.decode()[-2000:]}")
    return Cost(time.perf_counter() - start, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


class Bench:
    """Programs to measure, against one stub."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.folder = folder

    def rows(self, count: int) -> Path:
        """Return an input of so many rows."""
        path = self.folder / f"in{count}.jsonl"
        if not path.exists():
            with path.open("w", encoding="utf-8") as file:
                for i in range(count):
                    file.write(f'{{"question": "What is {i} plus {i + 7}? Show the steps.", "id": {i}}}\n')
        return path

    def run(self, client: str, count: int) -> Cost:
        """Run a client over so many rows."""
        if not client.startswith("ours"):
            return cost([sys.executable, __file__, "--drive", client, self.url, str(self.rows(count))])
        output = self.folder / "out.jsonl"
        overrides = {
            "input_file": self.rows(count), "output_file": output, "prompt_config": "generic/default",
            "server.server_type": "stub", "server.address": self.url, "max_concurrent_requests": IN_FLIGHT,
            "adaptive_concurrency": client == "ours", "skip_filled": False,
        }  # fmt: skip
        module = [sys.executable, "-m", "nemo_skills.inference.generate"]
        used = cost([*module, *(f"++{name}={value}" for name, value in overrides.items())])
        with output.open("rb") as file:
            assert sum(1 for _ in file) == count
        return used

    def rate(self, client: str) -> Rate:
        """Return the speed of a client without its start."""
        many = LONG_OPENAI if client == "openai" else LONG
        short, long = self.run(client, SHORT), self.run(client, many)
        return Rate(
            (many - SHORT) / (long.wall_s - short.wall_s),
            (many - SHORT) / (long.processor_s - short.processor_s),
        )


@contextmanager
def stub() -> Iterator[str]:
    """Start the stub server; it ends with the block."""
    argv = [sys.executable, "-m", "nemo_skills.inference.server.stub", "--answer", "short"]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().split()[-1]
    finally:
        process.kill()
        process.wait()


def measure(bench: Bench, rounds: int) -> dict[str, float]:
    """Compare the clients; the ratios are medians of those of each round."""
    clients = ("ours", "ours-fixed", "aiohttp", "openai")
    found: list[dict[str, Rate]] = []
    for number in range(rounds):
        found.append({client: bench.rate(client) for client in clients})
        for client, rate in found[-1].items():
            print(
                f"round {number + 1}: {client:10} {rate.per_core:7.0f} requests/s per core,"
                f" {rate.wall:6.0f} by the clock",
                flush=True,
            )

    def ratio(ours: str, other: str) -> float:
        return round(statistics.median(f[ours].per_core / f[other].per_core for f in found), 2)

    return {
        "vs_aiohttp": ratio("ours", "aiohttp"),
        "vs_openai": ratio("ours", "openai"),
        "vs_aiohttp_at_fixed_concurrency": ratio("ours-fixed", "aiohttp"),
    }


def main() -> int:
    """Measure, print, and fail when a bound is broken."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the long run for memory")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--drive", nargs=3, metavar=("CLIENT", "URL", "INPUT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.drive:
        drive(*args.drive)
        return 0
    with stub() as url, tempfile.TemporaryDirectory() as folder:
        bench = Bench(url, Path(folder))
        ratios = measure(bench, args.rounds)
        few, many = bench.run("ours", FEW_ROWS), bench.run("ours", args.rows)
    print(f"memory: {few.peak_mb:.1f} MB with {FEW_ROWS} rows, {many.peak_mb:.1f} MB with {args.rows}")
    print(f"{args.rows} rows took {many.wall_s:.0f} s, {args.rows / many.wall_s:.0f} rows/s")
    ratios["rss_1m_vs_10k"] = round(many.peak_mb / few.peak_mb, 3)
    print(json.dumps({"benchmark": "client_throughput", "rows": args.rows, **ratios, "bounds": BOUNDS}))
    good = all(ratios[name] >= BOUNDS[name] for name in ("vs_aiohttp", "vs_openai"))
    return 0 if good and ratios["rss_1m_vs_10k"] <= BOUNDS["rss_1m_vs_10k"] else 1


if __name__ == "__main__":
    sys.exit(main())
