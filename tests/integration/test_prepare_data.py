"""The data preparation main as a program: configs, mistakes, kills, full disks, and `ns run_cmd`."""

import hashlib
import json
import os
import random
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nemo_skills.training.prepare_data import run
from tests.integration.processes import processes_naming
from tests.services.process import wait_until

REPO = Path(__file__).resolve().parents[2]
MAIN = [sys.executable, "-m", "nemo_skills.training.prepare_data"]
Row = dict[str, Any]


def generations(problems: int, samples: int = 3, seed: int = 0) -> list[Row]:
    """Graded answers, as generation and evaluation write them."""
    dice = random.Random(seed)
    return [
        {
            "id": p, "problem": f"What is {p} + {p}?", "expected_answer": str(2 * p),
            "generation": f"Step {dice.random()}.\nThe answer is \\boxed{{{2 * p}}}.",
            "predicted_answer": str(2 * p),
            "verdict": dice.choice(["correct", "correct", "incorrect", "no_answer"]),
            "finish_reason": dice.choice(["stop"] * 9 + ["length"]), "num_generated_tokens": 20,
        }
        for p in range(problems) for _ in range(samples)
    ]  # fmt: skip


def write(path: Path, rows: list[Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def overrides(source: Path | str, output: Path, **given: Any) -> list[str]:
    values = {"input_files": source, "output_path": output, "prompt_template": "llama3-instruct", **given}
    return [f"++{key.replace('__', '.')}={value}" for key, value in values.items() if value is not None]


def prepare(*args: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*MAIN, *args], capture_output=True, text=True, timeout=120, **options)


def check_manifest(output: Path) -> dict[str, Any]:
    """Return the manifest after comparing it with the files."""
    manifest: dict[str, Any] = json.loads(output.with_name(f"{output.stem}.manifest.json").read_text())
    for file in manifest["outputs"]:
        data = Path(file["path"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == file["sha256"] and data.count(b"\n") == file["rows"]
    steps = manifest["steps"]
    for step in steps:
        counted = step["rows_out"] + step["merged"] + sum(step["dropped"].values())
        assert step["rows_in"] + step["created"] == counted
    assert sum(file["rows"] for file in manifest["outputs"]) == steps[-1]["rows_out"]
    return manifest


def test_graded_generations_become_training_data(weird_tmp_path: Path) -> None:
    folder = weird_tmp_path
    rows = generations(200)
    write(folder / "output-rs0.jsonl", rows[::2])
    write(folder / "output-rs1.jsonl", rows[1::2])
    write(folder / "output-rs1.failed.jsonl", [{"problem": "x", "_error": "gave up"}])
    write(folder / "bench" / "b.jsonl", [{"question": f"what is {n} + {n}"} for n in range(10)])
    done = prepare(
        *overrides(
            "output-rs*.jsonl", Path("sft.jsonl"), validation_size=20, decontaminate_against="bench/b.jsonl"
        ),
        *("--report", "report.html", "++processors.sample.max_samples=2"),
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    assert "output-rs1.failed.jsonl" in done.stderr
    manifest = check_manifest(folder / "sft.jsonl")
    dropped = {step["name"]: step["dropped"] for step in manifest["steps"] if step["dropped"]}
    assert set(dropped) == {"verdicts", "not_truncated", "decontaminate", "sample"}
    made, apart = read(folder / "sft.jsonl"), read(folder / "sft-validation.jsonl")
    assert len({row["id"] for row in apart}) == 20 and {row["id"] for row in apart}.isdisjoint(
        r["id"] for r in made
    )
    answers = {
        row["generation"] for row in rows if (row["verdict"], row["finish_reason"]) == ("correct", "stop")
    }
    for row in made + apart:
        assert row["output"].removesuffix("<|eot_id|>") in answers and row["problem"] in row["input"]
        assert row["id"] >= 10
    page = (folder / "report.html").read_text()
    assert "<svg" in page and "is a benchmark&#x27;s question" in page and "What is 1 + 1?" in page
    by_path = [sys.executable, str(REPO / "nemo_skills" / "training" / "prepare_data.py"), "--help"]
    assert "++key=value" in subprocess.run(by_path, capture_output=True, text=True, cwd=folder).stdout


def test_every_shipped_config_works(tmp_path: Path) -> None:
    rows = generations(40, 4)
    for row in rows:
        row["generation"] += "\n```python\nprint(1)\n```"
        row["messages"] = [{"role": "user", "content": row["problem"]}]
    source = write(tmp_path / "in.jsonl", rows)
    keys = {
        "math_sft": {"input", "output"}, "code_sft": {"input", "output"}, "general_sft": {"messages"},
        "dpo": {"prompt", "chosen", "rejected"},
    }  # fmt: skip
    for name, expected in keys.items():
        prompt = {"prompt_config": "generic/math"} if name != "general_sft" else {}
        output = tmp_path / f"{name}.jsonl"
        done = prepare(f"--config-name={name}", *overrides(source, output, processes=1, **prompt))
        assert done.returncode == 0, done.stderr
        check_manifest(output)
        assert expected <= read(output)[0].keys()


def test_conversations_of_several_turns(tmp_path: Path) -> None:
    rows = [
        {
            "turns": ["What is 1 + 1?", "And twice that?"],
            "generation": [f"2 ({n})", "4"],
            "finish_reason": "stop",
        }
        for n in range(6)
    ]
    source = write(tmp_path / "in.jsonl", [*rows, {**rows[0], "generation": ["2", None]}, rows[1]])
    output = tmp_path / "out.jsonl"
    turns = ("++problem_key=turns", "++processors.format.turns_key=turns", "++prompt_config=generic/default")
    keys = overrides(source, output, prompt_template=None, processes=1)
    done = prepare("--config-name=general_sft", *keys, *turns, "++processors.format.train_on=last")
    assert done.returncode == 0, done.stderr
    dropped = {step["name"]: step["dropped"] for step in check_manifest(output)["steps"] if step["dropped"]}
    assert dropped["deduplicate"] == {"duplicate": 1} and dropped["sample"] == {"more than max_samples": 3}
    for row in read(output):
        assert [(m["role"], m["train"]) for m in row["messages"]] == [
            ("user", False), ("assistant", False), ("user", False), ("assistant", True),
        ]  # fmt: skip


OWN = """
processors:
  - name: shout
    _target_: own_steps.Shout
    mark: "!"
  - name: loud
    _target_: own_steps.Loud
    words: [a, b]
  - _target_: order.Shuffle
"""
OWN_STEPS = """
from dataclasses import dataclass
from nemo_skills.training.data_preparation_utils.base import RowFilter, RowMap

@dataclass(frozen=True, kw_only=True)
class Shout(RowMap):
    mark: str = "?"
    def change(self, row):
        row["text"] = row["text"].upper() + self.mark
        return row

class Loud(RowFilter):
    def __init__(self, words, limit=3):
        self.words, self.limit = words, limit
    def reject(self, row):
        return None if len(row["text"]) > self.limit else "not loud"
"""


def test_a_list_of_ones_own_with_steps_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "own_steps.py").write_text(OWN_STEPS)
    (tmp_path / "own.yaml").write_text(OWN)
    write(tmp_path / "in.jsonl", [{"text": "a"}, {"text": "abc"}, {"text": "abcd"}])
    config = ["--config-path=.", "--config-name=own", "++input_files=in.jsonl", "++output_path=out.jsonl"]
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = prepare(*config, "++processors.loud.limit=4", cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    assert [row["text"] for row in read(tmp_path / "out.jsonl")] == ["ABCD!"]
    wrong = prepare(*config, "++processors.loud.limt=4", "++processors.shout.mrk=4", cwd=tmp_path, env=env)
    assert wrong.returncode == 2 and "Traceback" not in wrong.stderr
    assert "processors.loud.limt: unknown key. Did you mean 'limit'?" in wrong.stderr
    assert "processors.shout.mrk: unknown key. Did you mean 'mark'?" in wrong.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["++processors.sample.max_sample=3"],
            "processors.sample.max_sample: unknown key. Did you mean 'max_s",
        ),
        (
            ["++processors.sampl.max_samples=3"],
            "processors.sampl: no such item (a list of 14). Did you mean 's",
        ),
        (
            ["++processors.read._target_=reading.Read"],
            "no Read in nemo_skills.training.data_preparation_utils.re",
        ),
        (["++processors.read._target_=readng.X"], "there is no module readng. Did you mean 'reading'?"),
        (["++processors.read._target_=pathlib.Path"], "is no processor"),
        (
            ["++processors.split.validation=lots"],
            "processors.split.validation: expected float | int, got 'lots'",
        ),
        (["++promt_template=x"], "++promt_template: unknown key. Did you mean 'prompt_template'?"),
        (["++prompt_template=lama3-instruct"], "Did you mean 'llama3-instruct'?"),
        (["--config-name=math_stf"], "Did you mean 'math_sft'?"),
        (["++output_path=in.jsonl"], "in.jsonl is both input and output."),
        (["++processors.verdicts.keep=[great]"], "No row is left; nothing was written."),
        (
            ["++processors.where.expression=verdct == 1", "++processors.verdicts.enabled=false"],
            "where: verdct == 1: no 'verdct' in the row.",
        ),
        (["++input_files=no.jsonl"], "Input file no.jsonl does not exist."),
        (["++input_files=empty.jsonl"], "empty.jsonl: no rows in the input."),
    ],
)
def test_mistakes_are_explained_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    args: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "in.jsonl", generations(5))
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(SystemExit) as stopped:
        run([*overrides("in.jsonl", Path("out.jsonl"), processes=1), *args])
    assert stopped.value.code == 2 and message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.jsonl", "in.jsonl"]


@pytest.mark.parametrize("moment", ["started", "writing"])
def test_a_kill_leaves_nothing_that_looks_complete(tmp_path: Path, moment: str) -> None:
    source, output = tmp_path / "in.jsonl", tmp_path / "out" / "sft.jsonl"
    write(source, generations(100))
    args = overrides(source, output, part_mb=1, processes=2)
    assert prepare(*args).returncode == 0
    write(source, generations(25_000))
    running = subprocess.Popen([*MAIN, *args], stderr=subprocess.PIPE, text=True)
    assert running.stderr is not None
    if moment == "started":
        assert any("Preparing" in line for line in running.stderr)
    else:
        wait_until("it writes", lambda: output.with_name("sft.jsonl-tmp").exists(), 60)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    wait_until("the workers have ended", lambda: not processes_naming("prepare_data", str(output)), 30)
    # the earlier output is whole, or known to be none
    manifest = output.with_name("sft.manifest.json")
    if manifest.exists():
        check_manifest(output)
    assert all(row["output"].endswith("<|eot_id|>") for row in read(output))
    assert {path.name for path in output.parent.iterdir()} <= {
        "sft.jsonl",
        "sft.manifest.json",
        "sft.jsonl-tmp",
    }
    assert prepare(*args).returncode == 0
    check_manifest(output)
    assert len({row["id"] for row in read(output)}) > 15_000


def test_a_full_disk_is_explained(tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", generations(5000))
    command = [*MAIN, *overrides("in.jsonl", Path("sft.jsonl"), processes=2)]
    script = f"ulimit -f 200; {shlex.join(command)}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "where rows are sorted" in done.stderr and "grew over the largest size" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_through_run_cmd(ns: list[str], weird_tmp_path: Path) -> None:
    write(weird_tmp_path / "a1.jsonl", generations(20))
    write(weird_tmp_path / "b.jsonl", generations(20, seed=1))
    command = ["python", "-m", "nemo_skills.training.prepare_data"]
    args = overrides(
        "a*.jsonl b.jsonl", Path("sft.jsonl"), processors__where__expression="'5' not in problem"
    )
    done = subprocess.run(
        [*ns, "run_cmd", "--expname=data", *command, *args],
        cwd=weird_tmp_path, capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    manifest = check_manifest(weird_tmp_path / "sft.jsonl")
    assert manifest["steps"][0]["rows_in"] == 120
    assert read(weird_tmp_path / "sft.jsonl") and not any(
        "5" in r["problem"] for r in read(weird_tmp_path / "sft.jsonl")
    )


@pytest.mark.service("hf")
def test_prompts_and_lengths_come_from_a_tokenizer(tmp_path: Path) -> None:
    from nemo_skills.examples.tiny_model import build_tokenizer

    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    source = write(tmp_path / "in.jsonl", generations(30))
    output = tmp_path / "out.jsonl"
    short = {"processors__length__unit": "tokens", "processors__length__tokenizer": tmp_path / "tokenizer"}
    done = prepare(
        *overrides(source, output, tokenizer=tmp_path / "tokenizer", prompt_template=None, **short),
        *("++processors.length.at_most=100000", "++processors.length.at_least=3"),
    )
    assert done.returncode == 0, done.stderr
    for row in read(output):
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": row["input"]}], tokenize=False, add_generation_prompt=True
        )
        assert row["problem"] in row["input"] and row["input"][-10:] == prompt[-10:]
        assert row["output"].endswith(tokenizer.eos_token)


def test_reading_the_schema_is_cheap() -> None:
    script = "import sys, nemo_skills.training.prepare_data; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"torch", "transformers", "numpy", "hydra", "sympy"} & set(loaded)
