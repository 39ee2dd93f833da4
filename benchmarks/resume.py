"""How long a run with many finished rows takes to send its first new request, over `wc -l` of its journal.

A journal of a million answered rows lies there, and an input that has a few more. Measured is the time from
the start of the main's process to the arrival of the first request, Python's own start included; nothing is
left out: every finished row is compared with the input, as always. `wc` reads the journal alone, the larger
of the two files; both are in the file cache. Runs are interleaved: a noisy machine slows all alike.
Run: `python benchmarks/resume.py [rows] [repeats]`. The last line is one JSON object.
"""

import json
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import orjson

from nemo_skills.core.jsonl import InputFiles, Journal, add_fields
from nemo_skills.inference.config import GenerateConfig, ServerConfig
from nemo_skills.inference.opening import make_note
from nemo_skills.inference.survey import survey

BOUNDS = {"vs_wc": 20.0}
EXTRA = 64
IN_FLIGHT = 512
QUESTION = (
    "A train leaves the station at {i} minutes past nine and travels at a steady speed of {j} kilometres an"
    " hour. How far has it come by noon, if it stops twice for a quarter of an hour each time?"
)
ANSWER = (
    "First, count the minutes that the train is moving, and turn them into hours. " * 6 + "\\boxed{{{i}}}"
)


class Listener(ThreadingHTTPServer):
    """A server that notes when the first generation request arrives, and answers none."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.first = 0.0
        self.came = threading.Event()


class Handler(BaseHTTPRequestHandler):
    """Tells which model there is; lets generation requests hang."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer the question whether the server is ready."""
        body = b'{"object":"list","data":[{"id":"demo","object":"model"}]}'
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        """Note the time."""
        server = self.server
        assert isinstance(server, Listener)
        if not server.came.is_set():
            server.first = time.perf_counter()
            server.came.set()
        time.sleep(60)

    def log_message(self, *args: object) -> None:
        """Say nothing."""


def write_files(folder: Path, rows: int) -> GenerateConfig:
    """Write the input and the journal of a run that was killed after `rows` of its rows."""
    source, output = folder / "in.jsonl", folder / "out" / "output.jsonl"
    config = GenerateConfig(
        input_file=str(source), output_file=str(output), prompt_config="generic/default",
        server=ServerConfig(server_type="stub", address="http://127.0.0.1:9"),
    )  # fmt: skip
    with source.open("wb") as file:
        for i in range(rows + EXTRA):
            question = QUESTION.format(i=i, j=i % 300)
            file.write(orjson.dumps({"id": i, "question": question, "expected_answer": str(i)}) + b"\n")
    journal = Journal.open(output.with_name("output.jsonl-async"))
    inputs = InputFiles.find(str(source))
    journal.annotate(make_note(survey(config, inputs, journal).state, config))
    for position, raw in out_of_order(
        (block.position + index, raw)
        for block in inputs.blocks(0, rows)
        for index, raw in enumerate(block.rows)
    ):
        fields = {
            "generation": ANSWER.format(i=position), "num_generated_tokens": 90, "finish_reason": "stop",
            "generation_time": 1.2345678, "generation_start_time": 1.7e9, "generation_end_time": 1.7e9 + 1.2,
        }  # fmt: skip
        journal.append(position, raw, add_fields(raw, orjson.loads(raw), fields))
    journal.close()
    return config


def out_of_order(rows: Iterator[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    """Yield rows as they finish with many in flight."""
    dice = random.Random(0)
    flying: list[tuple[int, bytes]] = []
    for row in rows:
        flying.append(row)
        if len(flying) == IN_FLIGHT:
            place = dice.randrange(IN_FLIGHT)
            flying[place], flying[-1] = flying[-1], flying[place]
            yield flying.pop()
    yield from flying


@contextmanager
def listening() -> Iterator[Listener]:
    """Start the server in this process, which does nothing else meanwhile."""
    server = Listener()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def first_request(config: GenerateConfig) -> float:
    """Start the main, return how long its first request took to come, and kill it."""
    with listening() as server:
        argv = [
            sys.executable, "-m", "nemo_skills.inference.generate", f"++input_file={config.input_file}",
            f"++output_file={config.output_file}", "++prompt_config=generic/default",
            "++server.server_type=stub",
            f"++server.address=http://127.0.0.1:{server.server_address[1]}/v1",
        ]  # fmt: skip
        started = time.perf_counter()
        main = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
        try:
            if not server.came.wait(300):
                raise SystemExit(f"no request came: {main.communicate(timeout=5)}")
        finally:
            main.kill()
            main.communicate()
        return server.first - started


def wc(path: Path) -> float:
    """Return the time of `wc -l`."""
    started = time.perf_counter()
    subprocess.run(["wc", "-l", path], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> int:
    """Measure, print, and fail when a bound is broken."""
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    repeats = int(sys.argv[2]) if len(sys.argv) > 2 else 7
    times: dict[str, list[float]] = {"first_request": [], "wc_journal": [], "wc_input": [], "python": []}
    with tempfile.TemporaryDirectory() as name:
        config = write_files(Path(name), rows)
        journal, source = Path(f"{config.output_file}-async"), Path(config.input_file)
        megabytes = [round(path.stat().st_size / 1e6) for path in (journal, source)]
        print(f"{rows} finished rows: journal {megabytes[0]} MB, input {megabytes[1]} MB")
        for attempt in range(repeats + 1):
            taken = {
                "wc_journal": wc(journal),
                "wc_input": wc(source),
                "first_request": first_request(config),
            }
            started = time.perf_counter()
            subprocess.run([sys.executable, "-c", "import nemo_skills.inference.job"], check=True)
            taken["python"] = time.perf_counter() - started
            # the first round fills the file cache and writes bytecode
            if attempt:
                for key, value in taken.items():
                    times[key].append(value)
    median = {key: statistics.median(values) for key, values in times.items()}
    for key, value in median.items():
        print(f"{key:14} {value:7.3f} s   ({min(times[key]):.3f} at best)")
    report = {
        "benchmark": "resume", "rows": rows, "repeats": repeats,
        "first_request_s": round(median["first_request"], 3), "start_of_python_s": round(median["python"], 3),
        "wc_journal_s": round(median["wc_journal"], 3),
        "vs_wc": round(median["first_request"] / median["wc_journal"], 2),
        "vs_wc_journal_and_input": round(
            median["first_request"] / (median["wc_journal"] + median["wc_input"]), 2
        ),
        "bounds": BOUNDS,
    }  # fmt: skip
    print(json.dumps(report))
    return 0 if report["vs_wc"] <= BOUNDS["vs_wc"] else 1


if __name__ == "__main__":
    sys.exit(main())
