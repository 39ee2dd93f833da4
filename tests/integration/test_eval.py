"""`ns eval` from questions to scores: with real servers here and on Slurm, and where things break."""

import json
import shlex
from pathlib import Path

import pytest
import yaml

from nemo_skills.examples.tiny_model import build
from nemo_skills.pipeline import cli
from tests.integration.generation import gsm8k, read_rows
from tests.integration.slurm_jobs import SlurmUser
from tests.services.sshd import SshServer

ROWS = 200
STUB = ["--server_type=stub", "--model=m"]
EIGHTEEN = [*STUB, r"--server_args=--answer '\boxed{18}'"]


def prepare(folder: Path, rows: int) -> list[str]:
    """Write real questions as `ns prepare_data gsm8k` does; returns their answers."""
    prepared = []
    for row in map(json.loads, gsm8k(rows)):
        # shipped word problems have their answer apart already
        answer = row.get("expected_answer") or row["answer"].rpartition("####")[2]
        prepared.append({"problem": row["question"], "expected_answer": answer.strip().replace(",", "")})
    path = folder / "gsm8k" / "test.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in prepared))
    return [row["expected_answer"] for row in prepared]


def metrics(output_dir: Path, benchmark: str = "gsm8k") -> dict[str, object]:
    return json.loads((output_dir / "eval-results" / benchmark / "metrics.json").read_text())


def stamps(output_dir: Path) -> dict[str, int]:
    folder = output_dir / "eval-results" / "gsm8k"
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("output*.jsonl")}


class Here:
    """A user who runs jobs on this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def eval(self, *words: str, output_dir: str = "out") -> int:
        """Run `ns eval` to the end of its jobs; returns its exit code."""
        return cli.main(
            ["eval", *words, f"--output_dir={self.folder / output_dir}", f"--data_dir={self.folder / 'data'}"]
        )


class OnSlurm(Here):
    """A user of the test cluster."""

    def __init__(self, user: SlurmUser) -> None:
        super().__init__(user.workspace)
        self._user = user

    def eval(self, *words: str, output_dir: str = "out", expname: str = "") -> int:
        name = expname or output_dir
        code = super().eval(
            *words, f"--cluster={self._user.config()}", f"--expname={name}", output_dir=output_dir
        )
        states = self._user.wait(name, timeout_s=420) if code == 0 else {}
        return code or int(set(states.values()) != {"COMPLETED"})


@pytest.fixture
def here(weird_tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    monkeypatch.chdir(weird_tmp_path)
    return Here(weird_tmp_path)


@pytest.mark.service("hf")
@pytest.mark.parametrize("place", ["none", pytest.param("slurm", marks=pytest.mark.service("slurm"))])
def test_200_questions(
    place: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    on_slurm = place == "slurm"
    user = OnSlurm(request.getfixturevalue("slurm_user")) if on_slurm else request.getfixturevalue("here")
    prepare(user.folder / "data", ROWS)
    model = build(user.folder / "mo del")
    settings = json.loads((model / "generation_config.json").read_text())
    (model / "generation_config.json").write_text(json.dumps(settings | {"do_sample": True}))
    server = ["--server_type=hf", f"--model={model}", "++inference.tokens_to_generate=2"]

    def show(folder: Path) -> str:
        if on_slurm:
            capsys.readouterr()
            assert cli.main(["summarize_results", str(folder), f"--cluster={user._user.config()}"]) == 0
        return capsys.readouterr().out

    for name, files in (("gsm8k:0", ["output"]), ("gsm8k:4", [f"output-rs{seed}" for seed in range(4)])):
        output_dir = name.replace(":", "-")
        folder = user.folder / output_dir
        assert user.eval(f"--benchmarks={name}", *server, output_dir=output_dir) == 0
        table = show(folder)
        assert "gsm8k" in table
        assert f"0/{ROWS * len(files)}" in table  # nothing failed
        first = stamps(folder)
        assert sorted(first) == sorted(f"{file}.jsonl" for file in files)
        for file in first:
            rows = read_rows(folder / "eval-results" / "gsm8k" / file)
            assert len(rows) == ROWS
            assert {row["verdict"] for row in rows} <= {"correct", "incorrect", "no_answer"}
        report = metrics(folder)
        assert (report["rows"], report["samples"]) == (ROWS, len(files))
        # two tokens are no answer
        assert not report["valid"]
        assert "cut off" in str(report["why_invalid"])

    runs = {
        row["generation"] for file in first for row in read_rows(folder / "eval-results/gsm8k" / file)[:1]
    }
    assert len(runs) > 1, "samples differ"

    assert user.eval("--benchmarks=gsm8k:4", *server, output_dir=output_dir) == 0
    said = capsys.readouterr()
    assert "everything is done" in said.err
    assert stamps(folder) == first

    (folder / "eval-results/gsm8k/output-rs2.jsonl").unlink()
    # the server of what is left to do may be another one
    assert user.eval("--benchmarks=gsm8k:4", *EIGHTEEN, output_dir=output_dir) == 0
    second = stamps(folder)
    assert {name for name in first if first[name] != second[name]} == {"output-rs2.jsonl"}
    assert metrics(folder)["samples"] == 4


def broken_benchmark(folder: Path) -> Path:
    """Make a folder of benchmarks with one whose rows no prompt can be made of; returns its rows."""
    own = folder / "my benchmarks" / "broken"
    own.mkdir(parents=True)
    (own / "__init__.py").write_text(
        "from nemo_skills.dataset.base import BenchmarkDefaults\n"
        "DEFAULTS = BenchmarkDefaults(prompt_config='generic/math')\n"
    )
    (own / "test.jsonl").write_text('{"no problem": 1, "expected_answer": "2"}\n')
    return own / "test.jsonl"


def repair(rows: Path) -> None:
    rows.write_text('{"problem": "What is 9 + 9?", "expected_answer": "18"}\n')


def test_scores_are_right_and_a_failed_benchmark_stays_alone(
    here: Here, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = prepare(here.folder / "data", 60)
    broken = broken_benchmark(here.folder)
    words = ["--benchmarks=broken,gsm8k:2", f"--extra_datasets={broken.parents[1]}", *EIGHTEEN]
    assert here.eval(*words) != 0
    said = capsys.readouterr()
    assert "the same command does what is missing" in said.err
    share = 100 * expected.count("18") / len(expected)
    assert share > 0
    report = metrics(here.folder / "out")
    scores = [score["value"] for mode in report["metrics"].values() for score in [mode["symbolic_correct"]]]
    assert scores == pytest.approx([share] * len(scores))
    assert f"{share:.2f}" in said.out
    before = stamps(here.folder / "out")

    repair(broken)
    assert here.eval(*words) == 0
    assert "100.00" in capsys.readouterr().out
    assert stamps(here.folder / "out") == before
    assert metrics(here.folder / "out", "broken")["rows"] == 1
    assert here.eval(*words) == 0
    assert "everything is done" in capsys.readouterr().err

    # other settings of the grader grade again; a broken file of somebody else's hides nothing
    (here.folder / "out/old/eval-results/x").mkdir(parents=True)
    (here.folder / "out/old/eval-results/x/metrics.json").write_text("{")
    assert here.eval("--benchmarks=gsm8k:2", *EIGHTEEN, "--grader_args=++grader.extract_regex=(none)") == 0
    assert "the scores cannot be shown" in capsys.readouterr().err
    counts = metrics(here.folder / "out")["counts"]
    assert (counts["no_answer"], counts["total"]) == (120, 120)
    assert metrics(here.folder / "out", "broken")["counts"]["correct"] == 1


@pytest.mark.service("slurm")
def test_jobs_of_slurm_do_not_need_one_another(
    slurm_user: SlurmUser, capsys: pytest.CaptureFixture[str]
) -> None:
    user = OnSlurm(slurm_user)
    prepare(user.folder / "data", 20)
    broken = broken_benchmark(user.folder)
    words = [
        "--benchmarks=broken,gsm8k:2",
        f"--extra_datasets={broken.parents[1]}",
        "--num_jobs=2",
        *EIGHTEEN,
    ]
    judge = ["--judge_server_type=stub", "--judge_model=j", "--judge_server_args=--answer 'Judgement: Yes'"]
    assert user.eval(*words, *judge) == 1
    ids = slurm_user.ids("out")
    states = {name: slurm_user.state(number) for name, number in ids.items()}
    assert states["out-score"] == "FAILED"
    assert sorted(states) == ["out-0", "out-1", "out-judge-0", "out-judge-1", "out-score"]
    assert sorted(states[f"out-{i}"] for i in (0, 1)) == ["COMPLETED", "FAILED"]
    report = metrics(user.folder / "out")
    assert (report["samples"], report["valid"]) == (2, True)
    assert report["metrics"]["pass@1[avg-of-2]"]["judge_correct"]["value"] == 100
    assert "broken" not in [path.parent.name for path in (user.folder / "out").rglob("metrics.json")]

    repair(broken)
    before = stamps(user.folder / "out")
    assert user.eval(*words, *judge, expname="again") == 0
    assert sorted(slurm_user.ids("again")) == ["again", "again-judge", "again-score"]
    assert stamps(user.folder / "out") == before
    assert metrics(user.folder / "out", "broken")["rows"] == 1


def test_a_judge_grades(here: Here) -> None:
    expected = prepare(here.folder / "data", 20)
    judge = ["--judge_server_type=stub", "--judge_model=j", "--judge_server_args=--answer 'Judgement: Yes'"]
    assert here.eval("--benchmarks=gsm8k", *EIGHTEEN, *judge) == 0
    rows = read_rows(here.folder / "out/eval-results/gsm8k/output.jsonl")
    assert {row["verdict"] for row in rows} == {"correct"}
    assert {row["predicted_answer"] for row in rows} == {"18"}
    unjudged = read_rows(here.folder / "out/eval-results/gsm8k/unjudged/output.jsonl")
    assert [row["verdict"] == "correct" for row in unjudged] == [answer == "18" for answer in expected]
    report = metrics(here.folder / "out")
    assert report["metrics"]["pass@1"]["judge_correct"]["value"] == 100
    assert report["avg_tokens"] == pytest.approx(
        sum(row["num_generated_tokens"] for row in unjudged) / len(unjudged)
    )


def test_data_that_is_not_prepared(here: Here, capsys: pytest.CaptureFixture[str]) -> None:
    assert here.eval("--benchmarks=gsm8k,svamp", *STUB) == 2
    error = capsys.readouterr().err
    assert shlex.split(error.partition("Prepare it with: ")[2]) == [
        *("ns", "prepare_data", "gsm8k", "svamp", f"--data_dir={here.folder / 'data'}")
    ]
    assert not (here.folder / "out").exists()


@pytest.mark.parametrize(
    ("word", "messages"),
    [
        ("++inference.temprature=1", ["inference.temperature"]),
        ("++inference.random_seed=1", ["--benchmarks=name:k"]),
        ("--grader_args=++no_such=1", ["no_such"]),
        ("--judge_model=j", ["--judge_server_type"]),
        ("--judge_server_type=stub --judge_model=j --judge_args=++inference.temprature=1", ["temperature"]),
    ],
)
def test_mistakes_end_at_once(
    here: Here, word: str, messages: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(here.folder / "data", 1)
    assert here.eval("--benchmarks=gsm8k", *STUB, *word.split()) == 2
    error = capsys.readouterr().err
    assert all(message in error for message in messages), error
    assert not (here.folder / "out").exists()


@pytest.mark.service("ssh")
def test_scores_on_a_cluster(
    login: SshServer,
    weird_tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from tests.unit.test_results import graded, report, save

    save(weird_tmp_path / "on the cluster", report("gsm8k", 12.5))
    monkeypatch.setenv("PATH", login.env["PATH"])
    tunnel = {"host": login.host, "port": login.port, "user": login.user, "identity": str(login.identity)}
    config = weird_tmp_path / "far.yaml"
    settings = {
        "executor": "slurm",
        "container_runtime": "none",
        "ssh_tunnel": {**tunnel, "job_dir": "/jobs"},
    }
    config.write_text(yaml.safe_dump(settings))
    assert cli.main(["summarize_results", f"{weird_tmp_path}/on*", f"--cluster={config}"]) == 0
    assert "12.50" in capsys.readouterr().out

    graded(weird_tmp_path / "old", "rw")
    graded(weird_tmp_path / "new", "rr")
    folders = [str(weird_tmp_path / name) for name in ("old", "new")]
    assert cli.main(["compare", *folders, f"--cluster={config}"]) == 0
    assert "+50.00" in capsys.readouterr().out


def test_programs_are_graded_beside_a_sandbox(here: Here) -> None:
    own = here.folder / "mine" / "adding"
    own.mkdir(parents=True)
    (own / "__init__.py").write_text(
        "from nemo_skills.dataset.base import BenchmarkDefaults\n"
        "DEFAULTS = BenchmarkDefaults(prompt_config='generic/math', grader='code', needs_sandbox=True)\n"
    )
    rows = [{"problem": f"Write add{i}.", "test": f"assert add(1, {i}) == 3"} for i in (2, 3)]
    (own / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    answer = shlex.quote("```python\ndef add(a, b):\n    return a + b\n```")
    server = [*STUB, f"--server_args=--answer {answer}"]
    assert here.eval("--benchmarks=adding", f"--extra_datasets={own.parent}", *server) == 0
    graded = read_rows(here.folder / "out/eval-results/adding/output.jsonl")
    assert [row["verdict"] for row in graded] == ["correct", "incorrect"]
