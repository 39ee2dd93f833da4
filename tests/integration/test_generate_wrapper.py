"""`ns generate` on this machine: the same command against every kind of server, and nothing left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nemo_skills.core.errors import UserError
from nemo_skills.pipeline.cli import generate, wrap_arguments
from tests.conftest import REPO, vllm_python

PROMPT = "++prompt_config=generic/math"
SHORT = "++inference.tokens_to_generate=32"


def gsm8k(rows: int) -> list[dict[str, str]]:
    """Real questions where the data lies beside the checkout, else the shipped ones over and over."""
    path = Path(os.environ.get("NS_TEST_DATA", REPO.parent / "shared" / "data")) / "gsm8k_test.jsonl"
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines()[:rows]
        return [{"problem": json.loads(line)["question"]} for line in lines]
    shipped = (REPO / "nemo_skills" / "examples" / "word_problems.jsonl").read_text(encoding="utf-8")
    problems = [json.loads(line)["problem"] for line in shipped.splitlines()]
    return [{"problem": f"({i}) {problems[i % len(problems)]}"} for i in range(rows)]


def write_rows(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def check_complete(output: Path, rows: list[dict[str, str]]) -> list[dict[str, object]]:
    answered = read_rows(output)
    assert [row["problem"] for row in answered] == [row["problem"] for row in rows]
    for row in answered:
        assert isinstance(row["generation"], str)
        assert row["finish_reason"] in ("stop", "length")
        assert isinstance(row["num_generated_tokens"], int)
    return answered


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    from nemo_skills.examples.tiny_model import build

    return str(build(tmp_path_factory.mktemp("models") / "tiny model"))


@pytest.fixture
def stub_address(weird_tmp_path: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "nemo_skills.inference.server.stub", "--port", "0", "--model", "demo"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    line = server.stdout.readline()
    yield (
        next(word for word in line.split() if word.startswith("http://")).rstrip("/").removesuffix("/v1")
        + "/v1"
    )
    server.terminate()
    server.wait()


def run_ns(ns: list[str], *words: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*ns, *words], cwd=cwd, capture_output=True, text=True, timeout=280)


def job_processes(marker: str) -> list[int]:
    """Processes of a job, found by what they inherited; this also finds orphans and daemons."""
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if marker.encode() in environ.read_bytes():
                found.append(int(environ.parent.name))
        except OSError:
            continue
    return found


@pytest.mark.service("hf")
def test_hf(ns: list[str], weird_tmp_path: Path, tiny_model: str) -> None:
    rows = gsm8k(20)
    write_rows(weird_tmp_path / "in.jsonl", rows)
    words = ["--server_type=hf", f"--model={tiny_model}", "--input_file=in.jsonl", "--output_dir=o"]
    done = run_ns(ns, "generate", *words, PROMPT, SHORT, cwd=weird_tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    check_complete(weird_tmp_path / "o/generation/output.jsonl", rows)


@pytest.mark.service("vllm")
def test_vllm_answers_200_questions_64_at_a_time(
    ns: list[str], weird_tmp_path: Path, tiny_model: str
) -> None:
    rows = gsm8k(200)
    write_rows(weird_tmp_path / "in.jsonl", rows)
    config = weird_tmp_path / "here.yaml"
    config.write_text(f"executor: none\ncontainers: {{vllm: 'venv:{vllm_python().parents[1]}'}}\n")
    words = [f"--cluster={config}", "--server_type=vllm", f"--model={tiny_model}"]
    words += ["--server_args=--max-model-len 1024 --enforce-eager", "--input_file=in.jsonl", "--output_dir=o"]
    done = run_ns(ns, "generate", *words, PROMPT, SHORT, "++max_concurrent_requests=64", cwd=weird_tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    check_complete(weird_tmp_path / "o/generation/output.jsonl", rows)


def test_remote_address(ns: list[str], weird_tmp_path: Path, stub_address: str) -> None:
    rows = gsm8k(50)
    write_rows(weird_tmp_path / "in.jsonl", rows)
    words = ["--server_type=openai", f"--server_address={stub_address}", "--model=demo"]
    words += ["--input_file=in.jsonl", "--output_dir=o"]
    done = run_ns(ns, "generate", *words, PROMPT, "++end_reasoning_string=</think>", cwd=weird_tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    check_complete(weird_tmp_path / "o/generation/output.jsonl", rows)
    again = run_ns(ns, "generate", *words, PROMPT, cwd=weird_tmp_path)
    assert again.returncode == 0
    assert "is done" in again.stderr


def test_seeds_and_chunks_give_whole_files(ns: list[str], weird_tmp_path: Path) -> None:
    rows = gsm8k(21)
    write_rows(weird_tmp_path / "in.jsonl", rows)
    words = ["--server_type=stub", "--model=demo", "--input_file=in.jsonl"]
    seeds = ["--num_random_seeds=2", "--starting_seed=5"]
    for folder, more in (("whole", []), ("parts", ["--num_chunks=4"])):
        done = run_ns(
            ns, "generate", *words, f"--output_dir={folder}", *seeds, *more, PROMPT,
            "++add_generation_stats=false", cwd=weird_tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
    for seed in (5, 6):
        whole = (weird_tmp_path / f"whole/generation/output-rs{seed}.jsonl").read_text()
        assert whole == (weird_tmp_path / f"parts/generation/output-rs{seed}.jsonl").read_text()
        assert len(whole.splitlines()) == 21
    first, second = (read_rows(weird_tmp_path / f"whole/generation/output-rs{s}.jsonl") for s in (5, 6))
    assert [r["generation"] for r in first] != [r["generation"] for r in second]


def test_python_and_shell_make_the_same_plan(
    weird_tmp_path: Path, ns: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(weird_tmp_path / "in.jsonl", gsm8k(2))
    values = {
        "server_type": "vllm",
        "model": "some model",
        "server_args": "--chat-template='a b' --max-model-len 10",
        "input_file": str(weird_tmp_path / "in.jsonl"),
        "output_dir": str(weird_tmp_path / "o"),
        "num_random_seeds": 2,
        "expname": "parity",
    }
    overrides = {"prompt_config": "generic/math", "stop_phrase": 'it\'s $HOME "x"\n{y} </think> 🙂'}
    generate(ctx=wrap_arguments(overrides), **values, dry_run=True)
    from_python = capsys.readouterr().out
    words = [f"--{name}={value}" for name, value in values.items()]
    literal = [f"++{key}={value}" for key, value in overrides.items()]
    done = run_ns(ns, "generate", *words, "--dry_run", *literal, cwd=weird_tmp_path)
    assert done.returncode == 0, done.stderr
    assert "nothing was launched" in from_python
    assert done.stdout.split() == from_python.split()


@pytest.mark.parametrize(
    ("word", "messages"),
    [
        ("++inference.temprature=0.7", ["inference.temprature", "inference.temperature"]),
        ("--server_typ=vllm", ["--server_typ", "--server_type"]),
        ("++max_samples=ten", ["max_samples", "int", "ten"]),
        ("--server_type=vlm", ["vlm", "vllm"]),
        ("--server_gpus=many", ["server_gpus", "whole number"]),
        ("--num_chunks=2 --chunk_ids=2", ["chunk_ids"]),
        ("--run_after=never-launched", ["never-launched"]),
        ("++server.retry_budget_s=-1", ["retry_budget_s"]),
    ],
)
def test_typos_end_at_once(ns: list[str], weird_tmp_path: Path, word: str, messages: list[str]) -> None:
    write_rows(weird_tmp_path / "in.jsonl", gsm8k(2))
    words = ["--server_type=stub", "--model=demo", "--input_file=in.jsonl", "--output_dir=o", PROMPT]
    start = time.monotonic()
    done = run_ns(ns, "generate", *words, *word.split(), cwd=weird_tmp_path)
    # two seconds are promised on an idle machine; this one runs other tests
    assert time.monotonic() - start < 10
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    for message in messages:
        assert message in done.stderr
    assert not (weird_tmp_path / "o").exists()


def test_python_callers_get_the_same_errors(weird_tmp_path: Path) -> None:
    given = {"server_type": "stub", "model": "m", "input_file": "i", "output_dir": str(weird_tmp_path / "o")}
    with pytest.raises(UserError, match=r"inference\.temperature"):
        generate(wrap_arguments("++inference.temprature=0.7"), **given)
    with pytest.raises(UserError, match="server_type"):
        generate(wrap_arguments(""), **{**given, "server_typ": "x"})


@pytest.mark.parametrize(
    ("name", "content", "words", "messages"),
    [
        ("missing.jsonl", None, [], ["missing.jsonl"]),
        ("empty.jsonl", "", [], ["empty.jsonl"]),
        ("bad.jsonl", '{"problem": "x"}\n{"problem": \n', [], ["bad.jsonl", "2"]),
        ("key.jsonl", '{"question": "x"}\n', [], ["problem", "question"]),
        ("in.jsonl", '{"problem": "x"}\n', ["++prompt_config=generic/maths"], ["generic/math"]),
        (
            "in.jsonl",
            '{"problem": "x"}\n',
            [
                "--server_type=openai",
                "--server_address=http://127.0.0.1:9/v1",
                "++server.connect_timeout_s=1",
            ],
            ["127.0.0.1:9"],
        ),
    ],
)
def test_bad_input_is_one_clear_error(
    ns: list[str], weird_tmp_path: Path, name: str, content: str | None, words: list[str], messages: list[str]
) -> None:
    if content is not None:
        (weird_tmp_path / name).write_text(content)
    given = ["--server_type=stub", "--model=demo", f"--input_file={name}", "--output_dir=o", PROMPT]
    done = run_ns(ns, "generate", *given, *words, cwd=weird_tmp_path)
    text = done.stdout + done.stderr
    assert done.returncode != 0
    assert "Traceback" not in text
    for message in messages:
        assert message in text


def test_a_model_that_the_server_does_not_have(
    ns: list[str], weird_tmp_path: Path, stub_address: str
) -> None:
    write_rows(weird_tmp_path / "in.jsonl", gsm8k(2))
    words = ["--server_type=openai", f"--server_address={stub_address}", "--model=dmeo"]
    words += ["--input_file=in.jsonl", "--output_dir=o", PROMPT]
    done = run_ns(ns, "generate", *words, cwd=weird_tmp_path)
    text = done.stdout + done.stderr
    assert done.returncode != 0
    assert "demo" in text
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("end", "code"),
    [("success", 0), ("failure", 1), ("dead server", 1), (signal.SIGINT, 130), (signal.SIGTERM, 143)],
)
def test_no_process_stays_behind(
    ns: list[str], weird_tmp_path: Path, own_nemorun_home: Path, end: str | signal.Signals, code: int
) -> None:
    write_rows(weird_tmp_path / "in.jsonl", gsm8k(5))
    server_args = {"success": "", "failure": "--fail-rows .", "dead server": "--latency 0.2 --die-after 2"}
    args = server_args.get(str(end), "--latency 60")
    words = ["--server_type=stub", "--model=demo", f"--server_args={args}", "--input_file=in.jsonl"]
    words += ["--output_dir=o", PROMPT, "++max_concurrent_requests=1", "++server.retry_budget_s=1"]
    log = (weird_tmp_path / "ns.log").open("w")
    program = subprocess.Popen([*ns, "generate", *words], cwd=weird_tmp_path, stdout=log, stderr=log)
    marker = f"NS_RUN_DIR={own_nemorun_home}"
    if isinstance(end, signal.Signals):
        deadline = time.monotonic() + 60
        while not list(own_nemorun_home.glob("experiments/*/*/*/run/server-0.json")):
            assert time.monotonic() < deadline, (weird_tmp_path / "ns.log").read_text()
            time.sleep(0.1)
        time.sleep(1)
        assert len(job_processes(marker)) >= 3
        program.send_signal(end)
    assert program.wait(timeout=120) == code, (weird_tmp_path / "ns.log").read_text()
    assert job_processes(marker) == []
    assert "Traceback" not in (weird_tmp_path / "ns.log").read_text()
