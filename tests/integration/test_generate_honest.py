"""No output mixes answers of two kinds, and none that lacks rows is taken for complete."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nemo_skills.inference.request import Kind, RequestError, RequestFormat
from tests.integration.generation import Stub, read_rows, run_main, running_stub, write_rows


@pytest.fixture(scope="module")
def stub() -> Iterator[Stub]:
    with running_stub() as server:
        yield server


def merge(output: Path, chunks: int) -> "subprocess.CompletedProcess[str]":
    argv = [sys.executable, "-m", "nemo_skills.inference.merge_chunks"]
    argv += [f"++output_file={output}", f"++num_chunks={chunks}"]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60)


def test_chunks_of_different_cuts_are_not_merged(stub: Stub, tmp_path: Path) -> None:
    source, output = write_rows(tmp_path / "in.jsonl", 20), tmp_path / "out.jsonl"
    for chunk in (0, 1):
        assert run_main(stub.url, source, output, num_chunks=4, chunk_id=chunk).returncode == 0
    done = merge(output, 2)
    assert done.returncode == 1
    assert "do not fit together" in done.stderr
    assert "Traceback" not in done.stderr
    assert not output.exists()
    for chunk in (0, 1):
        run = run_main(stub.url, source, output, num_chunks=2, chunk_id=chunk, skip_filled="false")
        assert run.returncode == 0
    assert merge(output, 2).returncode == 0
    assert [row["id"] for row in read_rows(output)] == list(range(20))


def test_chunks_that_start_over_replace_the_whole(stub: Stub, tmp_path: Path) -> None:
    source, output = write_rows(tmp_path / "in.jsonl", 6), tmp_path / "out.jsonl"
    assert run_main(stub.url, source, output).returncode == 0
    for chunk in (0, 1):
        again = {"num_chunks": 2, "chunk_id": chunk, "skip_filled": "false", "generation_key": "new"}
        assert run_main(stub.url, source, output, **again).returncode == 0
    assert merge(output, 2).returncode == 0
    assert all("new" in row and "generation" not in row for row in read_rows(output))


def test_an_unfinished_run_goes_on_with_the_same_settings_only(tmp_path: Path) -> None:
    source, output = write_rows(tmp_path / "in.jsonl", 200), tmp_path / "out.jsonl"
    with running_stub(die_after=80) as server:
        first = run_main(
            server.url, source, output, max_concurrent_requests=4, server__retry_budget_s=1,
            server__outage_timeout_s=1,
        )  # fmt: skip
    assert first.returncode == 1
    with running_stub() as server:
        other = run_main(server.url, source, output, generation_key="other", inference__temperature=1)
        assert other.returncode == 2
        assert "generation_key: 'generation' → 'other'" in other.stderr
        assert "inference.temperature" in other.stderr
        before = server.requests
        assert before == 0
        assert run_main(server.url, source, output).returncode == 0
        assert server.requests <= 130
    rows = read_rows(output)
    assert [row["id"] for row in rows] == list(range(200))
    assert all("generation" in row for row in rows)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl", "out.jsonl.done"]


def test_an_input_of_bad_rows_only_is_no_success(stub: Stub, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", 3)
    done = run_main(stub.url, source, tmp_path / "o.jsonl", prompt_config="generic/math", on_bad_row="skip")
    assert done.returncode == 2
    assert "All 3 rows" in done.stderr
    assert not (tmp_path / "o.jsonl.done").exists()


@pytest.mark.parametrize(
    "choice",
    [
        '{"message": {"content": "partial"}, "finish_reason": "abort"}',
        '{"message": {"content": null}, "finish_reason": null}',
    ],
)
def test_what_the_server_cut_off_is_no_answer(choice: str) -> None:
    requests = object.__new__(RequestFormat)
    requests.chat = True
    requests._samples = 1
    with pytest.raises(RequestError) as error:
        requests.parse(f'{{"choices": [{choice}], "usage": {{}}}}'.encode())
    assert error.value.kind is Kind.retryable
