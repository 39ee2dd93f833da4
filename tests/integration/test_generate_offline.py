"""`ns generate --offline`: the rows of the generation main, answered without a server."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_skills.core.hydra import encode_override
from tests.conftest import REPO, vllm_python
from tests.integration.generation import read_rows, write_rows
from tests.integration.slurm_jobs import BARE, SlurmUser

PROMPT = "++prompt_config=generic/default"
SHORT = "++inference.tokens_to_generate=12"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    from nemo_skills.examples.tiny_model import build

    return str(build(tmp_path_factory.mktemp("models") / "tiny ' model"))


def generate(
    ns: list[str], model: str, source: Path, folder: Path, *words: str
) -> "subprocess.CompletedProcess[str]":
    options = {"server_type": "hf", "model": model, "input_file": str(source), "output_dir": str(folder)}
    flags = [f"--{name}={value}" for name, value in options.items()]
    argv = [*ns, "generate", "--offline", *flags, PROMPT, SHORT, *words]
    return subprocess.run(
        argv, capture_output=True, text=True, timeout=280, env=os.environ | {"PYTHONPATH": str(REPO)}
    )


def main(source: Path, output: Path, model: str, *words: str) -> "subprocess.CompletedProcess[str]":
    values = {"input_file": source, "output_file": output, "server.server_type": "hf", "server.model": model}
    args = [encode_override(name, str(value)) for name, value in values.items()]
    argv = [sys.executable, "-m", "nemo_skills.inference.generate_offline", *args, SHORT, *words]
    return subprocess.run(
        argv, capture_output=True, text=True, timeout=280, env=os.environ | {"PYTHONPATH": str(REPO)}
    )


@pytest.mark.service("hf")
def test_rows_in_order_and_a_second_call(ns: list[str], model: str, weird_tmp_path: Path) -> None:
    source = write_rows(weird_tmp_path / "in.jsonl", 9)
    sampled = ("++inference.temperature=1.0", "++batch_size=2")
    one = generate(ns, model, source, weird_tmp_path / "one", *sampled)
    assert one.returncode == 0, one.stderr
    two = generate(ns, model, source, weird_tmp_path / "two", *sampled, "++devices=2")
    assert two.returncode == 0, two.stderr
    results = [weird_tmp_path / name / "generation" / "output.jsonl" for name in ("one", "two")]
    assert results[0].read_bytes() == results[1].read_bytes()
    rows = read_rows(results[0])
    assert [{key: row[key] for key in ("question", "id")} for row in rows] == read_rows(source)
    assert len({row["generation"] for row in rows}) == 9
    for row in rows:
        assert row["finish_reason"] in ("stop", "length")
        assert 0 < row["num_generated_tokens"] <= 12
    log = weird_tmp_path / "two" / "generation-logs" / "generate-main.log"
    assert "starting 2 processes" in log.read_text()

    again = generate(ns, model, source, weird_tmp_path / "two", *sampled)
    assert again.returncode == 0
    assert "is done; --rerun_done does it again" in again.stderr


@pytest.mark.service("hf")
def test_arguments_are_checked_before_anything_starts(
    ns: list[str], model: str, weird_tmp_path: Path
) -> None:
    source = write_rows(weird_tmp_path / "in.jsonl", 1)
    done = generate(ns, model, source, weird_tmp_path, "++inference.temprature=1", "++devises=2")
    assert done.returncode == 2
    assert "Did you mean 'inference.temperature'" in done.stderr
    assert "Did you mean 'devices'" in done.stderr
    assert not (weird_tmp_path / "generation").exists()


@pytest.mark.service("hf")
def test_several_answers_reasoning_and_prefixes(model: str, weird_tmp_path: Path) -> None:
    source, output = weird_tmp_path / "in.jsonl", weird_tmp_path / "out.jsonl"
    source.write_text('{"question": "a", "answer": "It is"}\n{"question": "b", "answer": "We"}\n')
    several = main(source, output, model, PROMPT, "++inference.n=3", "++inference.temperature=1.0")
    assert several.returncode == 0, several.stderr
    for row in read_rows(output):
        assert len(set(row["generation"])) == 3
        assert len(row["finish_reason"]) == 3

    begun = main(
        source, weird_tmp_path / "begun.jsonl", model, PROMPT,
        "++generation_key=answer", "++prefix_generation_to_response=true",
    )  # fmt: skip
    assert begun.returncode == 0, begun.stderr
    answers = [row["answer"] for row in read_rows(weird_tmp_path / "begun.jsonl")]
    assert answers[0].startswith("It is") and len(answers[0]) > len("It is")

    parsed = main(
        source, weird_tmp_path / "parsed.jsonl", model, PROMPT,
        "++parse_reasoning=true", "++end_reasoning_string=e", "++inference.tokens_to_generate=60",
    )  # fmt: skip
    assert parsed.returncode == 0, parsed.stderr
    for row in read_rows(weird_tmp_path / "parsed.jsonl"):
        assert "e" not in row["generation"]
        assert row["_finished_reasoning"] or (row["generation"] == "" and "e" not in row["_reasoning"])
    assert any(row["_finished_reasoning"] for row in read_rows(weird_tmp_path / "parsed.jsonl"))


@pytest.mark.service("hf")
def test_rows_that_do_not_fit_and_bad_rows(model: str, weird_tmp_path: Path) -> None:
    source, output = weird_tmp_path / "in.jsonl", weird_tmp_path / "out.jsonl"
    source.write_text(
        '{"question": "short"}\n{"question": "%s"}\n{"qustion": "x"}\n{"question": "b"}\n' % ("long " * 90)
    )
    small = (PROMPT, "++context_length=100")
    bad = main(source, output, model, *small)
    assert bad.returncode == 2
    assert f"{source}:3: " in bad.stderr
    assert "'question' is missing" in bad.stderr

    skips = (*small, "++on_bad_row=skip")
    failed = main(source, output, model, *skips)
    assert failed.returncode == 1
    assert "2 of 4 rows got no answer (1 context_length, 1 bad_row)" in failed.stderr
    assert "++max_failed_rows=1" in failed.stderr
    assert not output.exists()
    reasons = {row["_line"]: row["_reason"] for row in read_rows(weird_tmp_path / "out.failed.jsonl")}
    assert reasons == {2: "context_length", 3: "bad_row"}

    accepted = main(source, output, model, *skips, "++max_failed_rows=1")
    assert accepted.returncode == 0, accepted.stderr
    assert "loading" not in accepted.stderr, "everything had been answered"
    assert [row["question"] for row in read_rows(output)] == ["short", "b"]
    mark = json.loads((weird_tmp_path / "out.jsonl.done").read_text())
    assert (mark["rows"], mark["failed"], mark["skipped"]) == (2, 1, 1)

    cut = main(
        source, weird_tmp_path / "cut.jsonl", model, *skips,
        "++server.context_limit_retry_strategy=reduce_prompt_from_end",
    )  # fmt: skip
    assert cut.returncode == 0, cut.stderr
    rows = read_rows(weird_tmp_path / "cut.jsonl")
    assert [row.get("context_cut", {}).get("strategy") for row in rows] == [
        None,
        "reduce_prompt_from_end",
        None,
    ]


@pytest.mark.service("hf")
@pytest.mark.service("slurm")
def test_four_tasks_on_two_nodes_of_slurm(slurm_user: SlurmUser, model: str, weird_tmp_path: Path) -> None:
    slurm_user.use(BARE)
    source = write_rows(slurm_user.workspace / "in.jsonl", 11)
    options = {"offline": True, "server_type": "hf", "model": model, "server_gpus": 2, "server_nodes": 2}
    sampled = (SHORT, "++inference.temperature=1.0", "++batch_size=2")
    assert slurm_user.generate(*sampled, **options) == 0
    assert slurm_user.wait(timeout_s=240) == {"generate": "COMPLETED"}
    alone = main(source, weird_tmp_path / "alone.jsonl", model, PROMPT, *sampled)
    assert alone.returncode == 0, alone.stderr
    result = slurm_user.workspace / "out put/generation/output.jsonl"
    assert result.read_bytes() == (weird_tmp_path / "alone.jsonl").read_bytes()
    log = (slurm_user.workspace / "out put/generation-logs/generate-main.log").read_text()
    assert {f"rank {rank} of 4 has" in log for rank in range(4)} == {True}


@pytest.mark.service("vllm")
def test_vllm_in_an_environment_of_its_own(ns: list[str], model: str, weird_tmp_path: Path) -> None:
    source = write_rows(weird_tmp_path / "in.jsonl", 3)
    config = weird_tmp_path / "cluster.yaml"
    config.write_text(f"executor: none\ncontainers:\n  vllm: 'venv:{vllm_python().parents[1]}'\n")
    done = generate(
        ns, model, source, weird_tmp_path, "--server_type=vllm", f"--cluster={config}",
        "++context_length=512", "++engine_args.enforce_eager=true",
    )  # fmt: skip
    log = weird_tmp_path / "generation-logs" / "generate-main.log"
    assert done.returncode == 0, done.stderr + log.read_text()
    rows = read_rows(weird_tmp_path / "generation" / "output.jsonl")
    assert [row["id"] for row in rows] == [0, 1, 2]
    assert all(0 < row["num_generated_tokens"] <= 12 for row in rows)
