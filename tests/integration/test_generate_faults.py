"""Whatever goes wrong with a server while a run lasts: each row is answered once, or says why not."""

import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import vllm_python
from tests.integration.generation import (
    main_argv,
    read_rows,
    run_main,
    running_stub,
    untimed,
    wait_for,
    write_rows,
)

ROWS = 400


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def journal_ids(output: Path) -> list[int]:
    records = read_rows(output.with_name(f"{output.name}-async"))
    return [record["id"] for record in records if "id" in record]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rows as a server without faults answers them."""
    folder = tmp_path_factory.mktemp("reference")
    with running_stub() as calm:
        done = run_main(calm.url, write_rows(folder / "in.jsonl", ROWS), folder / "out.jsonl")
    assert done.returncode == 0, done.stderr
    return folder / "out.jsonl"


@pytest.mark.parametrize(
    "moods",
    [
        {"error_rate": 0.2},
        {"truncate_rate": 0.2},
        {"hang_rate": 0.05},
        {"rate_limit_rate": 0.1, "retry_after": 0.1},
        {"max_concurrent": 20, "retry_after": 0.2, "latency": 0.02},
        {
            "error_rate": 0.1,
            "truncate_rate": 0.1,
            "hang_rate": 0.02,
            "max_concurrent": 30,
            "retry_after": 0.1,
        },
    ],
    ids="+".join,
)
def test_a_faulty_server_costs_time_but_no_row(
    moods: dict[str, float], reference: Path, weird_tmp_path: Path
) -> None:
    source, output = write_rows(weird_tmp_path / "in.jsonl", ROWS), weird_tmp_path / "o.jsonl"
    with running_stub(**moods) as stub:
        done = run_main(stub.url, source, output, server__request_timeout_s=1)
        requests = stub.requests
    assert done.returncode == 0, done.stderr
    assert untimed(output) == untimed(reference)
    assert not output.with_name("o.failed.jsonl").exists()
    # faults were met, and the client does not hammer a server that wants to be left alone
    assert ROWS < requests < 3 * ROWS


def test_the_server_is_killed_in_the_middle_and_comes_back(reference: Path, tmp_path: Path) -> None:
    source, output, port = write_rows(tmp_path / "in.jsonl", ROWS), tmp_path / "o.jsonl", free_port()
    with running_stub(port=port, latency=0.1) as first:
        main = subprocess.Popen(
            main_argv(first.url, source, output, max_concurrent_requests=8), stderr=subprocess.PIPE, text=True
        )
        wait_for(lambda: first.requests > ROWS / 4)
        first.process.send_signal(signal.SIGKILL)
        first.process.wait()
    time.sleep(2)
    assert main.poll() is None
    with running_stub(port=port) as second:
        _, errors = main.communicate(timeout=30)
        assert second.requests <= 3 * ROWS / 4 + 8
    assert main.returncode == 0, errors
    assert untimed(output) == untimed(reference)


def test_a_server_that_stays_away_is_noticed_long_before_the_rows_give_up(
    reference: Path, tmp_path: Path
) -> None:
    source, output = write_rows(tmp_path / "in.jsonl", ROWS), tmp_path / "o.jsonl"
    with running_stub(die_after=100, latency=0.02) as mortal:
        start = time.monotonic()
        gone = run_main(mortal.url, source, output, server__outage_timeout_s=6)
    assert (gone.returncode, "No server has answered" in gone.stderr) == (1, True), gone.stderr
    assert time.monotonic() - start < 25
    progress = json.loads((tmp_path / "o.progress.json").read_text())
    assert (progress["state"], progress["servers"][0]["down"]) == ("stopped", True)
    assert "No server" in progress["reason"]
    assert not (tmp_path / "o.failed.jsonl").exists()
    with running_stub() as healthy:
        done = run_main(healthy.url, source, output)
        assert (done.returncode, healthy.requests <= ROWS - 100 + 64) == (0, True), done.stderr
    assert untimed(output) == untimed(reference)
    assert not (tmp_path / "o.progress.json").exists()


def test_each_row_is_answered_or_failed_with_its_reason(tmp_path: Path) -> None:
    source, output = write_rows(tmp_path / "in.jsonl", ROWS), tmp_path / "o.jsonl"
    with running_stub(error_rate=0.4, fail_rows="is [1-4]1 ") as stub:
        hasty = {"server__retry_budget_s": 0}
        done = run_main(stub.url, source, output, **hasty)
        assert (done.returncode, "rows got no answer" in done.stderr) == (1, True), done.stderr
        failed = read_rows(tmp_path / "o.failed.jsonl")
        assert sorted([*journal_ids(output), *(row["id"] for row in failed)]) == list(range(ROWS))
        reasons = Counter(row["_reason"] for row in failed)
        assert reasons.keys() == {"bad_request", "retryable"}
        assert reasons["retryable"] > ROWS / 5
        assert all("HTTP 500" in row["_error"] for row in failed if row["_reason"] == "retryable")
        # failed ones, and only they, are tried again; what may stay without an answer is the user's choice
        strict = run_main(stub.url, source, output, max_failed_rows="1%")
        assert strict.returncode == 0, strict.stderr
    refused = {row["id"] for row in read_rows(tmp_path / "o.failed.jsonl")}
    assert refused == {11, 21, 31, 41}
    assert [row["id"] for row in read_rows(output)] == [i for i in range(ROWS) if i not in refused]


def test_soft_failure(tmp_path: Path) -> None:
    source, output = write_rows(tmp_path / "in.jsonl", 60), tmp_path / "o.jsonl"
    soft = {"server__enable_soft_fail": "true"}
    with running_stub(fail_rows="is [1-5]") as stub:
        limited = run_main(stub.url, source, output, max_failed_rows=3, **soft)
        assert limited.returncode == 1
        done = run_main(stub.url, source, output, **soft)
    assert done.returncode == 0, done.stderr
    assert "55 of 60 rows got no answer" in done.stderr
    assert len(read_rows(output)) == 5
    assert len(read_rows(tmp_path / "o.failed.jsonl")) == 55
    with running_stub(fail_rows="is") as stub:
        nothing = run_main(stub.url, write_rows(tmp_path / "few.jsonl", 5), tmp_path / "n.jsonl", **soft)
        before = stub.requests
        many = write_rows(tmp_path / "many.jsonl", 5000)
        refused = run_main(stub.url, many, tmp_path / "m.jsonl", **soft)
        assert stub.requests - before < 600
    assert (nothing.returncode, refused.returncode) == (1, 1)
    assert "refused all of the first" in refused.stderr


class TestContext:
    """Prompts that do not fit."""

    @pytest.mark.parametrize("strategy", ["reduce_prompt_from_start", "reduce_prompt_from_end"])
    def test_a_long_prompt_loses_one_end(self, strategy: str, tmp_path: Path) -> None:
        source, output = tmp_path / "in.jsonl", tmp_path / "o.jsonl"
        text = "".join(f"[{i}]" for i in range(5000))
        source.write_text(json.dumps({"question": text}) + '\n{"question": "short"}\n')
        settings = {"server__context_limit_retry_strategy": strategy, "inference__tokens_to_generate": 50}
        with running_stub(context_limit=1000) as stub:
            done = run_main(stub.url, source, output, **settings)
        assert done.returncode == 0, done.stderr
        long, short = read_rows(output)
        assert long["generation"]
        cut = long["context_cut"]
        kept = len(text) - cut["characters_cut"]
        # at four characters a token the stub takes 3800
        assert (cut["strategy"], 2500 < kept <= 3800) == (strategy, True)
        assert "context_cut" not in short

    def test_an_answer_is_made_shorter(self, tmp_path: Path) -> None:
        source, output = tmp_path / "in.jsonl", tmp_path / "o.jsonl"
        source.write_text(json.dumps({"question": "long " * 700}) + '\n{"question": "short"}\n')
        settings = {"server__context_limit_retry_strategy": "reduce_generation"}
        settings |= {"inference__tokens_to_generate": 900, "inference__extra_body": "{ignore_eos:true}"}
        with running_stub(context_limit=1000) as stub:
            done = run_main(stub.url, source, output, **settings)
            rows = read_rows(output)
            hopeless = run_main(stub.url, write_long(tmp_path), tmp_path / "h.jsonl", **settings)
        assert done.returncode == 0, done.stderr
        assert [row["num_generated_tokens"] for row in rows] == [123, 900]
        assert rows[0]["context_cut"] == {"strategy": "reduce_generation", "tokens_to_generate": 123}
        assert (hopeless.returncode, "1 context_length" in hopeless.stderr) == (1, True), hopeless.stderr
        assert "nothing left to cut" in read_rows(tmp_path / "h.failed.jsonl")[0]["_error"]

    def test_a_turn_of_a_conversation(self, tmp_path: Path) -> None:
        source, output = tmp_path / "in.jsonl", tmp_path / "o.jsonl"
        source.write_text(json.dumps({"turns": ["hello", "long " * 999]}) + "\n")
        settings = {"server__context_limit_retry_strategy": "reduce_prompt_from_start"}
        settings |= {"multi_turn_key": "turns", "inference__tokens_to_generate": 50}
        with running_stub(context_limit=300) as stub:
            done = run_main(stub.url, source, output, **settings)
        assert done.returncode == 0, done.stderr
        [row] = read_rows(output)
        assert [cut and cut["strategy"] for cut in row["context_cut"]] == [None, "reduce_prompt_from_start"]
        assert len(row["generation"]) == 2


def write_long(folder: Path) -> Path:
    path = folder / "hopeless.jsonl"
    path.write_text(json.dumps({"question": "long " * 9999}) + "\n")
    return path


def test_several_answers_to_a_request(tmp_path: Path) -> None:
    source, output = write_rows(tmp_path / "in.jsonl", 5), tmp_path / "o.jsonl"
    several = {"inference__n": 3, "inference__temperature": 1, "inference__top_logprobs": 1}
    with running_stub() as stub:
        assert run_main(stub.url, source, output, **several).returncode == 0
        assert stub.requests == 5
    row = read_rows(output)[0]
    assert len(set(row["generation"])) == 3
    assert row["finish_reason"] == ["stop"] * 3
    assert ["".join(tokens) for tokens in row["tokens"]] == row["generation"]
    assert row["num_generated_tokens"] == sum(map(len, row["tokens"]))


def test_the_progress_file_tells_how_far_it_is(tmp_path: Path) -> None:
    source, output = write_rows(tmp_path / "in.jsonl", 300), tmp_path / "o.jsonl"
    path = tmp_path / "o.progress.json"
    with running_stub(latency=0.1, slots=6, error_rate=0.1) as stub:
        argv = main_argv(stub.url, source, output, max_concurrent_requests=30, adaptive_concurrency="false")
        main = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
        try:
            wait_for(lambda: path.exists() and json.loads(path.read_text())["done"] > 100)
            seen = json.loads(path.read_text())
        finally:
            main.kill()
            main.communicate()
        assert json.loads(path.read_text())["state"] == "running"
        assert (seen["total"], seen["failed"], seen["concurrency"]) == (300, 0, 30)
        assert 0 < seen["in_flight"] <= 30
        assert 30 < seen["rows_per_s"] < 70
        assert 5 * seen["rows_per_s"] < seen["generated_tokens_per_s"] < 40 * seen["rows_per_s"]
        assert seen["prompt_tokens"] > 100
        assert 0 < seen["eta_s"] < 20
        assert seen["retries"] > 3
        assert "HTTP 500" in seen["last_error"]
        assert 10 < seen["server_queue"] <= 24
        assert seen["servers"][0]["address"] == stub.url
        assert seen["pid"] == main.pid
        assert abs(time.time() - seen["updated_at"]) < 10
        assert run_main(stub.url, source, output).returncode == 0
    assert not path.exists()


class TestConcurrency:
    """The client finds out what the server takes."""

    @contextmanager
    def levels(self, path: Path) -> Iterator[list[int]]:
        """Collect the concurrency that a run reports."""
        found: list[int] = []
        over = threading.Event()

        def read() -> None:
            while not over.wait(0.3):
                if path.exists():
                    found.append(json.loads(path.read_text())["concurrency"])

        reader = threading.Thread(target=read)
        reader.start()
        try:
            yield found
        finally:
            over.set()
            reader.join()

    def run(
        self, folder: Path, rows: int, moods: dict[str, Any], **settings: Any
    ) -> tuple[list[int], int, float]:
        source = write_rows(folder / "in.jsonl", rows)
        with running_stub(**moods) as stub, self.levels(folder / "o.progress.json") as levels:
            start = time.monotonic()
            done = run_main(stub.url, source, folder / "o.jsonl", **settings)
            taken = time.monotonic() - start
            requests = stub.requests
        assert done.returncode == 0, done.stderr
        assert len(read_rows(folder / "o.jsonl")) == rows
        return levels, requests, taken

    def test_a_wide_server_is_soon_used_fully(self, tmp_path: Path) -> None:
        levels, _, taken = self.run(tmp_path, 4000, {"latency": 0.5})
        assert max(levels) >= 400
        # 512 at a time take 4 s; starting the program and finding out come on top
        assert taken < 14

    def test_a_narrow_server_is_not_flooded(self, tmp_path: Path) -> None:
        levels, _, taken = self.run(tmp_path, 1500, {"latency": 0.1, "slots": 24})
        assert 24 <= levels[-1] <= 110
        assert taken < 1.5 * 1500 * 0.1 / 24 + 3

    def test_a_server_that_refuses_is_asked_less(self, tmp_path: Path) -> None:
        moods = {"latency": 0.1, "max_concurrent": 40, "retry_after": 0.5}
        levels, requests, taken = self.run(tmp_path, 2500, moods)
        assert 30 <= sorted(levels)[len(levels) // 2] <= 45
        assert requests < 1.1 * 2500
        assert taken < 1.8 * 2500 * 0.1 / 40 + 4

    def test_a_storm_of_refusals_fails_no_row_and_caps_avoid_it(self, tmp_path: Path) -> None:
        moods = {"latency": 0.3, "per_second": 50, "retry_after": 1}
        _, requests, taken = self.run(tmp_path, 300, moods)
        assert requests > 350
        assert taken < 60
        (tmp_path / "capped").mkdir()
        _, requests, _ = self.run(tmp_path / "capped", 300, moods, server__requests_per_minute=1400)
        assert requests == 300

    def test_requests_a_minute(self, tmp_path: Path) -> None:
        _, _, taken = self.run(tmp_path, 30, {}, server__requests_per_minute=300)
        assert 4.5 < taken < 12


@contextmanager
def running_vllm(model: str, port: int, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A vLLM server on this machine's processors, up and answering."""
    argv = [vllm_python(), "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--port", str(port)]
    argv += ["--max-model-len", "1024", "--enforce-eager", "--host", "127.0.0.1"]
    small = {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1"}
    with (folder / f"vllm-{time.time_ns()}.log").open("wb") as log:
        server = subprocess.Popen(
            list(map(str, argv)), env=os.environ | small, stdout=log, stderr=log, start_new_session=True
        )

        def ready() -> bool:
            assert server.poll() is None, (folder / log.name).read_text()[-3000:]
            try:
                return bool(urllib.request.urlopen(f"http://127.0.0.1:{port}/health").status == 200)
            except OSError:
                return False

        try:
            wait_for(ready, 400)
            yield server
        finally:
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()


@pytest.mark.service("vllm")
@pytest.mark.timeout(600)
def test_a_real_vllm_is_killed_in_the_middle_and_started_again(weird_tmp_path: Path) -> None:
    from nemo_skills.examples.tiny_model import build

    model, port = str(build(weird_tmp_path / "model")), free_port()
    url = f"http://127.0.0.1:{port}/v1"
    source, output = write_rows(weird_tmp_path / "in.jsonl", 1000), weird_tmp_path / "o.jsonl"
    settings: dict[str, Any] = {
        "server__server_type": "vllm", "inference__tokens_to_generate": 64, "max_concurrent_requests": 16,
    }  # fmt: skip
    progress = weird_tmp_path / "o.progress.json"
    with running_vllm(model, port, weird_tmp_path) as server:
        self_check_context(url, weird_tmp_path)
        argv = main_argv(url, source, output, **settings, server__outage_timeout_s=500)
        main = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)

        def in_the_middle() -> bool:
            seen = json.loads(progress.read_text()) if progress.exists() else {"done": 0}
            return seen["done"] > 100 and seen["server_queue"] is not None

        wait_for(in_the_middle, 60)
        assert main.poll() is None
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    with running_vllm(model, port, weird_tmp_path):
        _, errors = main.communicate(timeout=500)
    assert main.returncode == 0, errors
    rows = read_rows(output)
    assert [row["id"] for row in rows] == list(range(1000))
    assert all(row["num_generated_tokens"] > 0 for row in rows)
    assert not weird_tmp_path.joinpath("o.failed.jsonl").exists()


def self_check_context(url: str, folder: Path) -> None:
    """What vLLM really says of prompts that do not fit, and several answers with log probabilities."""
    source = folder / "long.jsonl"
    source.write_text(json.dumps({"question": "one two three " * 2000}) + '\n{"question": "short"}\n')
    for strategy in ("reduce_prompt_from_start", "reduce_prompt_from_end"):
        done = run_main(
            url, source, folder / f"{strategy}.jsonl", server__server_type="vllm",
            server__context_limit_retry_strategy=strategy, inference__tokens_to_generate=100,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        long, short = read_rows(folder / f"{strategy}.jsonl")
        assert 0 < long["context_cut"]["characters_cut"] < 28_000
        assert "context_cut" not in short
    vllm = {"server__server_type": "vllm"}
    refused = run_main(url, source, folder / "whole.jsonl", inference__tokens_to_generate=100, **vllm)
    assert (refused.returncode, "1 context_length" in refused.stderr) == (1, True), refused.stderr
    wordy = {"server__context_limit_retry_strategy": "reduce_generation", "max_failed_rows": 1, **vllm}
    shorter = run_main(url, source, folder / "shorter.jsonl", inference__tokens_to_generate=5000, **wordy)
    assert shorter.returncode == 0, shorter.stderr
    assert 256 <= read_rows(folder / "shorter.jsonl")[0]["context_cut"]["tokens_to_generate"] < 1024
    several = run_main(
        url, write_rows(folder / "few.jsonl", 2), folder / "several.jsonl", server__server_type="vllm",
        inference__n=3, inference__temperature=1, inference__top_logprobs=2, inference__tokens_to_generate=8,
    )  # fmt: skip
    assert several.returncode == 0, several.stderr
    row = read_rows(folder / "several.jsonl")[0]
    assert [len(row[key]) for key in ("generation", "tokens", "logprobs", "finish_reason")] == [3] * 4
    assert re.fullmatch(r"(stop|length)", row["finish_reason"][0])
