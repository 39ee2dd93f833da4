"""The generation main against the shipped stub server, all as real processes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.generation import (
    TIMING,
    Stub,
    main_argv,
    read_rows,
    run_main,
    running_stub,
    untimed,
    wait_for,
    write_rows,
)


@pytest.fixture(scope="module")
def stub() -> Iterator[Stub]:
    with running_stub() as server:
        yield server


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class TestOutput:
    def test_rows_are_the_input_plus_the_answer_in_order(self, stub: Stub, weird_tmp_path: Path) -> None:
        source = weird_tmp_path / "in.jsonl"
        lines = ['{"question": "a", "big": 123456789012345678901, "x": 1E2}', '{ "question": "\\u00e9" }']
        source.write_text("\n\n".join(lines) + "\n")
        output = weird_tmp_path / "new folder" / "out.jsonl"
        done = run_main(stub.url, source, output)
        assert (done.returncode, files(output.parent)) == (0, ["out.jsonl", "out.jsonl.done"]), done.stderr
        assert "[user] a" in done.stderr
        written = output.read_text().splitlines()
        assert [text.startswith(line[:-1].rstrip()) for text, line in zip(written, lines, strict=True)] == [
            True
        ] * 2
        added = set(json.loads(written[0])) - {"question", "big", "x"}
        assert added == {"generation", "num_generated_tokens", "finish_reason", *TIMING}

        before, stamp = stub.requests, output.stat().st_mtime_ns
        again = run_main(stub.url, source, output)
        assert "Nothing to do" in again.stderr
        assert (again.returncode, stub.requests, output.stat().st_mtime_ns) == (0, before, stamp)
        assert run_main(stub.url, source, output, skip_filled="false").returncode == 0
        assert stub.requests == before + 2

    def test_concurrency_and_chunks_do_not_change_the_answers(self, stub: Stub, tmp_path: Path) -> None:
        source = write_rows(tmp_path / "in.jsonl", 101)
        sampling = {"inference__temperature": 0.8, "inference__random_seed": 7, "max_samples": 95}
        assert run_main(stub.url, source, tmp_path / "a.jsonl", **sampling).returncode == 0
        slow = run_main(stub.url, source, tmp_path / "b.jsonl", max_concurrent_requests=1, **sampling)
        assert slow.returncode == 0
        assert untimed(tmp_path / "a.jsonl") == untimed(tmp_path / "b.jsonl")
        assert [row["id"] for row in read_rows(tmp_path / "a.jsonl")] == list(range(95))

        folder = tmp_path / "chunked"
        merge = [sys.executable, "-m", "nemo_skills.inference.merge_chunks"]
        merge += [f"++output_file={folder / 'c.jsonl'}", "++num_chunks=3"]
        for chunk in range(3):
            early = subprocess.run(merge, capture_output=True, text=True)
            assert (early.returncode, f"{3 - chunk} of 3 chunks" in early.stderr) == (1, True)
            assert subprocess.run([*merge, "++if_complete=true"]).returncode == 0
            part = run_main(stub.url, source, folder / "c.jsonl", num_chunks=3, chunk_id=chunk, **sampling)
            assert part.returncode == 0, part.stderr
        assert len(read_rows(folder / "c_chunk_1.jsonl")) in (31, 32)
        for _ in range(2):
            assert subprocess.run(merge).returncode == 0
            assert files(folder) == ["c.jsonl", "c.jsonl.done"]
        assert untimed(folder / "c.jsonl") == untimed(tmp_path / "a.jsonl")
        late = run_main(stub.url, source, folder / "c.jsonl", num_chunks=3, chunk_id=0, **sampling)
        assert (late.returncode, files(folder)) == (0, ["c.jsonl", "c.jsonl.done"])

    def test_equal_questions_get_different_samples(self, stub: Stub, tmp_path: Path) -> None:
        source = tmp_path / "in.jsonl"
        source.write_text('{"question": "same"}\n' * 8)
        run_main(stub.url, source, tmp_path / "out.jsonl", inference__temperature=1)
        assert len({row["generation"] for row in read_rows(tmp_path / "out.jsonl")}) > 1

    def test_text_endpoint_options_and_stats(self, stub: Stub, tmp_path: Path) -> None:
        source = write_rows(tmp_path / "in.jsonl", 3)
        done = run_main(
            stub.url, source, tmp_path / "out.jsonl",
            prompt_template="llama3-instruct", inference__tokens_to_generate=5, inference__top_logprobs=2,
            generation_key="reply",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        row = read_rows(tmp_path / "out.jsonl")[0]
        assert (row["num_generated_tokens"], row["finish_reason"]) == (5, "length")
        assert "".join(row["tokens"]) == row["reply"]
        assert len(row["top_logprobs"][0]) == 2
        assert run_main(
            stub.url, source, tmp_path / "bare.jsonl", add_generation_stats="false"
        ).returncode == 0  # fmt: skip
        assert set(read_rows(tmp_path / "bare.jsonl")[0]) == {"question", "id", "generation"}

    def test_reasoning_is_split_off(self, tmp_path: Path) -> None:
        source = write_rows(tmp_path / "in.jsonl", 1)
        with running_stub(answer="I think </think> 42") as stub:
            run_main(stub.url, source, tmp_path / "out.jsonl", parse_reasoning="true")
            cut = {"parse_reasoning": "true", "inference__tokens_to_generate": 2}
            run_main(stub.url, source, tmp_path / "cut.jsonl", **cut)
        row, unfinished = read_rows(tmp_path / "out.jsonl")[0], read_rows(tmp_path / "cut.jsonl")[0]
        assert (row["generation"], row["_reasoning"], row["_finished_reasoning"]) == ("42", "I think ", True)
        assert (unfinished["generation"], unfinished["_finished_reasoning"]) == ("", False)
        assert unfinished["_reasoning"] == "I think "

    def test_turns_are_answered_in_order(self, stub: Stub, tmp_path: Path) -> None:
        source = tmp_path / "in.jsonl"
        source.write_text('{"turns": ["one", {"question": "two"}, "three"]}\n{"turns": ["one"]}\n')
        done = run_main(stub.url, source, tmp_path / "out.jsonl", multi_turn_key="turns")
        assert done.returncode == 0, done.stderr
        first, second = read_rows(tmp_path / "out.jsonl")
        assert (len(first["generation"]), len(second["generation"])) == (3, 1)
        assert first["generation"][0] == second["generation"][0] != first["generation"][1]
        # the history of the second turn: the same conversation as ready-made messages
        messages = [
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": first["generation"][0]},
            {"role": "user", "content": "two"},
        ]
        (tmp_path / "flat.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
        run_main(
            stub.url, tmp_path / "flat.jsonl", tmp_path / "flat_out.jsonl",
            prompt_config=None, prompt_format="openai",
        )  # fmt: skip
        assert read_rows(tmp_path / "flat_out.jsonl")[0]["generation"] == first["generation"][1]

    def test_answers_that_were_begun_are_continued(self, stub: Stub, tmp_path: Path) -> None:
        source = tmp_path / "in.jsonl"
        source.write_text('{"question": "q", "generation": "Well, "}\n')
        done = run_main(stub.url, source, tmp_path / "out.jsonl", prefix_generation_to_response="true")
        assert done.returncode == 0, done.stderr
        assert read_rows(tmp_path / "out.jsonl")[0]["generation"].startswith("Well, ")
        refused = run_main(
            stub.url, source, tmp_path / "no.jsonl", prefix_generation_to_response="true",
            server__server_type="openai",
        )  # fmt: skip
        assert (refused.returncode, "cannot continue" in refused.stderr) == (2, True)

    def test_dry_run_shows_prompts_and_writes_nothing(self, tmp_path: Path) -> None:
        source = write_rows(tmp_path / "in.jsonl", 5)
        done = run_main("http://127.0.0.1:9", source, tmp_path / "out" / "o.jsonl", dry_run="true")
        assert (done.returncode, done.stdout.count("[user] What is")) == (0, 3)
        assert files(tmp_path) == ["in.jsonl"]


class TestBadInput:
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (None, "does not exist"),
            ("", "has no rows"),
            ("\n \n", "has no rows"),
            ('{"question": "a"}\n{"question": \n', "in.jsonl:2: not valid JSON"),
            ('{"question": "a"}\n[1]\n', "in.jsonl:2: a row must be a JSON object, not a list"),
            ('{"problem": "a"}\n', "in.jsonl:1: .*'question'.*problem"),
        ],
    )
    def test_ends_with_2_and_leaves_nothing(
        self, stub: Stub, tmp_path: Path, content: str | None, message: str
    ) -> None:
        source = tmp_path / "in.jsonl"
        if content is not None:
            source.write_text(content)
        before = stub.requests
        done = run_main(stub.url, source, tmp_path / "out" / "o.jsonl")
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
        assert re.search(message, done.stderr), done.stderr
        assert stub.requests == before
        assert not (tmp_path / "out" / "o.jsonl").exists()
        assert not (tmp_path / "out" / "o.jsonl-async").exists()

    def test_bad_rows_can_be_left_out(self, stub: Stub, tmp_path: Path) -> None:
        source = tmp_path / "in.jsonl"
        source.write_text('{"question": "a"}\nnonsense\n{"q": 1}\n{"question": "b"}\n')
        done = run_main(stub.url, source, tmp_path / "o.jsonl", on_bad_row="skip")
        assert done.returncode == 0, done.stderr
        assert [row["question"] for row in read_rows(tmp_path / "o.jsonl")] == ["a", "b"]
        assert "2 bad rows" in done.stderr

    def test_settings_that_cannot_be(self, stub: Stub, tmp_path: Path) -> None:
        source = write_rows(tmp_path / "in.jsonl", 1)
        cases: list[tuple[dict[str, object], str]] = [
            ({"inference__temprature": 1}, "temperature"),
            ({"max_samples": "ten"}, "int"),
            ({"prompt_config": "generic/mth"}, "generic/math"),
            ({"num_chunks": 2}, "chunk_id"),
            ({"server__server_type": "openai", "inference__top_k": 5}, "top_k"),
            ({"inference__endpoint_type": "text"}, "prompt_template"),
            ({"server__api_key_env": "NS_NO_SUCH_KEY"}, "NS_NO_SUCH_KEY"),
        ]
        for overrides, message in cases:
            done = run_main(stub.url, source, tmp_path / "o.jsonl", **overrides)
            assert (done.returncode, message in done.stderr) == (2, True), done.stderr
            assert "Traceback" not in done.stderr
        same = run_main(stub.url, source, source)
        assert (same.returncode, "must differ" in same.stderr) == (2, True)
        assert files(tmp_path) == ["in.jsonl"]

    def test_output_that_cannot_be_written(self, stub: Stub, tmp_path: Path) -> None:
        source = write_rows(tmp_path / "in.jsonl", 1)
        done = run_main(stub.url, source, source / "folder" / "o.jsonl")
        assert done.returncode != 0
        assert "Cannot write" in done.stderr
        assert "Traceback" not in done.stderr


class TestTrouble:
    def test_a_moody_server_loses_nothing(self, tmp_path: Path) -> None:
        source = write_rows(tmp_path / "in.jsonl", 300)
        moods = {
            "error_rate": 0.1,
            "rate_limit_rate": 0.1,
            "retry_after": 0.1,
            "truncate_rate": 0.05,
            "hang_rate": 0.01,
        }
        with running_stub() as calm, running_stub(**moods) as moody:
            assert run_main(calm.url, source, tmp_path / "calm.jsonl").returncode == 0
            done = run_main(moody.url, source, tmp_path / "moody.jsonl", server__request_timeout_s=1)
            assert done.returncode == 0, done.stderr
            assert moody.requests > 330
        assert untimed(tmp_path / "calm.jsonl") == untimed(tmp_path / "moody.jsonl")

    def test_refused_rows_go_to_the_failed_file_and_are_retried(self, stub: Stub, tmp_path: Path) -> None:
        source = write_rows(tmp_path / "in.jsonl", 60)
        output = tmp_path / "o.jsonl"
        with running_stub(fail_rows="is [37] ") as strict:
            done = run_main(strict.url, source, output)
            assert (done.returncode, "2 of 60 rows got no answer (2 bad_request)" in done.stderr) == (1, True)
            assert files(tmp_path) == [
                "in.jsonl",
                "o.failed.jsonl",
                "o.jsonl-async",
                "o.progress.json",
            ]
            failed = read_rows(tmp_path / "o.failed.jsonl")
            assert sorted((row["_position"], row["_line"], row["id"]) for row in failed) == [
                (3, 4, 3),
                (7, 8, 7),
            ]
            assert all("HTTP 400" in row["_error"] and row["_reason"] == "bad_request" for row in failed)
            assert all("generation" not in row for row in failed)
            before = strict.requests
            accepted = run_main(strict.url, source, output, max_failed_rows=2)
            assert (accepted.returncode, strict.requests) == (0, before + 2), accepted.stderr
        assert [row["id"] for row in read_rows(output)] == [i for i in range(60) if i not in (3, 7)]
        assert len(read_rows(tmp_path / "o.failed.jsonl")) == 2
        assert "2 more without an answer" in run_main(stub.url, source, output).stderr

        (tmp_path / "o.jsonl.done").unlink()
        healed = run_main(stub.url, source, output)
        assert healed.returncode == 0
        assert [row["id"] for row in read_rows(output)] == list(range(60))
        assert not (tmp_path / "o.failed.jsonl").exists()

    def test_prompts_over_the_context_are_named_so(self, tmp_path: Path) -> None:
        source = tmp_path / "in.jsonl"
        source.write_text(json.dumps({"question": "long " * 999}) + '\n{"question": "short"}\n')
        with running_stub(context_limit=300) as stub:
            done = run_main(stub.url, source, tmp_path / "o.jsonl", inference__tokens_to_generate=50)
        assert (done.returncode, "1 context_length" in done.stderr) == (1, True), done.stderr
        assert read_rows(tmp_path / "o.failed.jsonl")[0]["_reason"] == "context_length"

    def test_a_server_that_refuses_everything_stops_the_run(self, tmp_path: Path) -> None:
        source = write_rows(tmp_path / "in.jsonl", 3000)
        with running_stub(fail_rows="What") as stub:
            done = run_main(stub.url, source, tmp_path / "o.jsonl", max_concurrent_requests=8)
            assert (done.returncode, "refused all of the first" in done.stderr) == (1, True), done.stderr
            assert stub.requests < 100

    def test_a_wrong_key_stops_the_run_at_once_and_no_key_is_shown(self, tmp_path: Path) -> None:
        source = write_rows(tmp_path / "in.jsonl", 50)
        output, key = tmp_path / "o.jsonl", "sk-canary-1234567890"
        with running_stub(api_key=key) as stub:
            wrong = run_main(
                stub.url,
                source,
                output,
                server__server_type="openai",
                env={"OPENAI_API_KEY": "sk-wrong-987654"},
            )
            assert wrong.returncode != 0
            assert "401" in wrong.stderr
            assert "sk-wrong" not in wrong.stderr
            named = {"server__api_key_env": "MY_KEY", "log_level": "DEBUG"}
            right = run_main(stub.url, source, output, env={"MY_KEY": key}, **named)
        assert right.returncode == 0, right.stderr
        assert key not in right.stderr + right.stdout + output.read_text()

    def test_a_server_that_dies_stops_the_run_which_then_goes_on(self, tmp_path: Path) -> None:
        source = write_rows(tmp_path / "in.jsonl", 400)
        output = tmp_path / "o.jsonl"
        with running_stub(die_after=150, latency=0.02) as mortal:
            start = time.monotonic()
            dead = run_main(mortal.url, source, output, server__retry_budget_s=2, max_concurrent_requests=16)
        assert (dead.returncode, "No server has answered" in dead.stderr) == (1, True), dead.stderr
        assert time.monotonic() - start < 40
        with running_stub() as healthy:
            done = run_main(healthy.url, source, output)
            assert done.returncode == 0
            assert healthy.requests <= 400 - 150 + 16
        assert [row["id"] for row in read_rows(output)] == list(range(400))

    def test_the_end_of_the_jobs_own_server_is_noticed(self, tmp_path: Path) -> None:
        source = write_rows(tmp_path / "in.jsonl", 400)
        (tmp_path / "server.log").write_text("loading\nout of memory\n")
        with running_stub(latency=0.5) as stub:
            host, port = stub.url.removesuffix("/v1").removeprefix("http://").split(":")
            entry = {
                "name": "vllm", "index": 0, "count": 1, "model": None, "ready_path": "/health", "host": host,
                "port": int(port), "pid": stub.process.pid, "state": "starting", "exit_code": None,
                "log": str(tmp_path / "server.log"),
            }  # fmt: skip
            published = tmp_path / "server-0.json"
            published.write_text(json.dumps(entry))
            argv = main_argv(None, source, tmp_path / "o.jsonl", max_concurrent_requests=2)
            env = {**os.environ, "NS_RUN_DIR": str(tmp_path)}
            main = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, env=env)
            wait_for(lambda: stub.requests > 3)
            stub.process.kill()
            published.write_text(json.dumps({**entry, "state": "exited", "exit_code": 137}))
            _, errors = main.communicate(timeout=15)
        assert main.returncode == 1
        assert "exit code 137" in errors
        assert "out of memory" in errors

    def test_replicas_share_the_work_and_cover_for_each_other(self, tmp_path: Path) -> None:
        source = write_rows(tmp_path / "in.jsonl", 200)
        with running_stub(latency=0.02) as one, running_stub(latency=0.02, die_after=40) as two:
            done = run_main(f"{one.url},{two.url}", source, tmp_path / "o.jsonl", max_concurrent_requests=8)
            assert done.returncode == 0, done.stderr
            assert one.requests >= 160
        assert [row["id"] for row in read_rows(tmp_path / "o.jsonl")] == list(range(200))


class TestResume:
    def test_sigterm_keeps_what_is_done(self, tmp_path: Path) -> None:
        source = write_rows(tmp_path / "in.jsonl", 300)
        with running_stub(latency=0.05) as stub:
            argv = main_argv(stub.url, source, tmp_path / "o.jsonl", max_concurrent_requests=4)
            for signum, minimum in ((signal.SIGTERM, 20), (signal.SIGINT, 60)):
                main = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
                wait_for(lambda minimum=minimum: stub.requests > minimum)
                main.send_signal(signum)
                _, errors = main.communicate(timeout=10)
                assert (main.returncode, "Traceback" in errors) == (128 + signum, False), errors
            assert subprocess.run(argv).returncode == 0
            assert stub.requests <= 300 + 2 * 4
        assert [row["id"] for row in read_rows(tmp_path / "o.jsonl")] == list(range(300))

    def test_edited_rows_are_named_and_done_again(self, tmp_path: Path) -> None:
        source, output = write_rows(tmp_path / "in.jsonl", 40), tmp_path / "o.jsonl"
        with running_stub(fail_rows="is 39 ") as stub:
            assert run_main(stub.url, source, output).returncode == 1
            lines = source.read_text().splitlines()
            lines[5] = lines[5].replace("What is", "How much is")
            source.write_text("\n".join(lines[:39]) + "\n")
            before = stub.requests
            done = run_main(stub.url, source, output)
            assert (done.returncode, stub.requests - before) == (0, 1), done.stderr
        assert "in.jsonl:6 has changed" in done.stderr
        rows = read_rows(output)
        assert [row["id"] for row in rows] == list(range(39))
        assert rows[5]["question"].startswith("How much")

    def test_two_clients_on_one_output(self, tmp_path: Path) -> None:
        source = write_rows(tmp_path / "in.jsonl", 400)  # ten seconds: the second client starts in them
        with running_stub(latency=0.1) as stub:
            argv = main_argv(stub.url, source, tmp_path / "o.jsonl", max_concurrent_requests=4)
            first = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
            wait_for(lambda: stub.requests > 4)
            second = subprocess.run(argv, capture_output=True, text=True)
            assert (second.returncode, "Another process" in second.stderr) == (2, True), second.stderr
            assert first.wait(timeout=60) == 0
        assert [row["id"] for row in read_rows(tmp_path / "o.jsonl")] == list(range(400))

    def test_a_full_disk_loses_nothing(self, stub: Stub, tmp_path: Path) -> None:
        source, folder = write_rows(tmp_path / "in.jsonl", 2000), tmp_path / "small"
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)]
        if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
            pytest.skip("needs the right to mount a tmpfs")
        try:
            output = folder / "o.jsonl"
            full = run_main(stub.url, source, output)
            assert (full.returncode, "disk is full" in full.stderr) == (1, True), full.stderr
            assert "Traceback" not in full.stderr
            kept = len((folder / "o.jsonl-async").read_text().splitlines()) - 1  # the first line is a note
            assert kept > 500
            # room for the journal but not for the output as well: fails while finishing
            subprocess.run(["mount", "-o", "remount,size=1200k", str(folder)], check=True)
            before = stub.requests
            middle = run_main(stub.url, source, output)
            assert (middle.returncode, "disk is full" in middle.stderr) == (1, True), middle.stderr
            assert stub.requests - before == 2000 - kept
            assert set(files(folder)) <= {"o.jsonl-async", "o.progress.json"}
            subprocess.run(["mount", "-o", "remount,size=8m", str(folder)], check=True)
            done = run_main(stub.url, source, output)
            assert (done.returncode, stub.requests - before) == (0, 2000 - kept), done.stderr
            assert [row["id"] for row in read_rows(output)] == list(range(2000))
        finally:
            subprocess.run(["umount", str(folder)], check=True)


class TestCost:
    def test_memory_does_not_grow_with_the_input(self, stub: Stub, tmp_path: Path) -> None:
        def peak(count: int) -> int:
            source = write_rows(tmp_path / f"in{count}.jsonl", count)
            program = (
                "import resource, sys; from nemo_skills.inference.generate import run; run();"
                "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
            )
            arguments = main_argv(stub.url, source, tmp_path / f"out{count}.jsonl", log_level="ERROR")[3:]
            done = subprocess.run(
                [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=200
            )
            assert done.returncode == 0, done.stderr
            return int(done.stdout)

        assert peak(50_000) < 1.3 * peak(2_000)

    def test_importing_the_main_is_light(self) -> None:
        program = (
            "import sys, nemo_skills.inference.generate;"
            "heavy = 'torch transformers vllm aiohttp openai hydra';"
            "print([m for m in heavy.split() if m in sys.modules])"
        )
        assert (
            subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "[]\n"
        )

    def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(self, tmp_path: Path) -> None:
        source = write_rows(tmp_path / "in.jsonl", 30)
        with running_stub(latency=0.3) as stub:
            bar = run_main(
                stub.url, source, tmp_path / "a.jsonl", max_concurrent_requests=10,
                env={"NS_TERMINAL_WIDTH": "120"},
            )  # fmt: skip
            lines = run_main(stub.url, source, tmp_path / "b.jsonl", max_concurrent_requests=1)
        assert "30/30" in bar.stderr
        assert "tokens/s" in bar.stderr
        assert "\x1b[" not in lines.stderr
        assert "of 30 rows (" in lines.stderr
