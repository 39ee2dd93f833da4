"""`ns summarize_results`: finds scores, puts models side by side, and prints them in several formats."""

import csv
import io
import json
from pathlib import Path

import pytest

from nemo_skills.evaluation.metrics.report import BenchmarkReport, Counts, Group, Score
from nemo_skills.evaluation.score import run as score
from nemo_skills.pipeline import cli
from nemo_skills.pipeline.result_files import short_names
from tests.services.process import wait_until


def report(benchmark: str, value: float, **changes: object) -> BenchmarkReport:
    counts = Counts(total=800, correct=500, incorrect=280, no_answer=12, timed_out=5, failed=8, truncated=3)
    score = Score(value=value, problems=200, std_error=1.0, low=value - 2, high=value + 2)
    values = {
        "benchmark": benchmark,
        "eval_type": "math",
        "measure": "symbolic_correct",
        "rows": 200,
        "samples": 4,
        "valid": True,
        "counts": counts,
        "metrics": {
            "pass@1[avg-of-4]": {"symbolic_correct": score},
            "pass@4": {"symbolic_correct": Score(value=value + 10, problems=200)},
        },
        "avg_tokens": 123.4,
        "generation_seconds": 56.0,
        "groups": (
            Group(
                field="level",
                value="5",
                rows=20,
                counts=Counts(total=80, correct=80),
                metrics={"pass@4": {"symbolic_correct": Score(value=99.0, problems=20)}},
            ),
        ),
    }
    return BenchmarkReport(**(values | changes))  # type: ignore[arg-type]


def save(folder: Path, *reports: BenchmarkReport) -> None:
    for one in reports:
        path = folder / "eval-results" / one.benchmark / "metrics.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(one.to_json()))


@pytest.fixture
def models(weird_tmp_path: Path) -> Path:
    invalid = {"valid": False, "why_invalid": "8 of 800 samples failed | 1 %"}
    save(weird_tmp_path / "runs" / "base & co", report("gsm8k", 50.0), report("math_x", 20.0))
    save(weird_tmp_path / "runs" / "tuned", report("gsm8k", 75.25, **invalid))
    return weird_tmp_path / "runs"


def summary(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    code = cli.main(["summarize_results", *map(str, words)])
    said = capsys.readouterr()
    assert code == 0, said.err
    return said.out


def test_models_side_by_side(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = summary(capsys, models)
    names, header, _, *rows = out.splitlines()
    assert names.split() == [*["base", "&", "co"] * 6, *["tuned"] * 6]
    assert header.split().count("truncated") == 2
    assert rows[0].split() == [
        *("gsm8k", "pass@1[avg-of-4]", "symbolic_correct"),
        *("50.00", "48.0–52.0", "12/800", "5/800", "3/800", "8/800"),
        *("75.25", "!", "73.2–77.2", "12/800", "5/800", "3/800", "8/800"),
    ]
    assert rows[1].split() == ["pass@4", "symbolic_correct", "60.00", "85.25", "!"]
    assert rows[2].split()[0] == "math_x"
    assert "! gsm8k of tuned is not valid: 8 of 800 samples failed | 1 %" in out


def test_each_model_has_its_counts_beside_its_first_score(
    weird_tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(weird_tmp_path / "a", report("gsm8k", 50.0))
    single = {"pass@1": {"symbolic_correct": Score(value=60.0, problems=200)}}
    save(weird_tmp_path / "b", report("gsm8k", 60.0, metrics=single, counts=Counts(total=200, failed=9)))
    rows = summary(capsys, weird_tmp_path).splitlines()[3:]
    assert [("12/800" in row, "9/200" in row) for row in rows] == [
        (True, False),
        (False, False),
        (False, True),
    ]


def test_groups_have_their_own_validity(weird_tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(weird_tmp_path / "a", report("gsm8k", 50.0, valid=False, why_invalid="many failed"))
    lines = json.loads(summary(capsys, weird_tmp_path, "--groups", "--format=json"))
    assert {line["group"]: line["valid"] for line in lines} == {"": False, "level=5": True}
    out = summary(capsys, weird_tmp_path, "--groups")
    assert "99.00 !" not in out
    assert "! gsm8k is not valid: many failed" in out


def test_filters_and_patterns(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = summary(capsys, f"{models}/t*", "--groups")
    assert "base" not in out
    assert "gsm8k level=5" in out
    assert "123" in out  # one model has room for tokens and seconds
    assert "tuned" not in summary(capsys, models, "--only=base*,x")
    assert "math_x" not in summary(capsys, models / "base & co" / "eval-results", "--benchmarks=gsm*")
    assert cli.main(["summarize_results", str(models), "--benchmarks=mmlu"]) == 2
    assert "no results that fit --benchmarks" in capsys.readouterr().err


def test_formats_for_programs(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = json.loads(summary(capsys, models, "--format=json"))
    rows = list(csv.DictReader(io.StringIO(summary(capsys, models, "--format=csv"))))
    assert len(data) == len(rows) == 6
    assert [str(line["score"]) for line in data] == [row["score"] for row in rows]
    (worst,) = [line for line in data if line["model"] == "tuned" and line["mode"] == "pass@4"]
    assert (worst["valid"], worst["failed"], worst["folder"]) == (False, 8, str(models / "tuned"))


def test_formats_for_documents(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    header, rule, *rows = summary(capsys, models, "--format=markdown").splitlines()
    assert header.count("|") == rule.count("|") == rows[0].count("|") == 15
    latex = summary(capsys, models, "--format=latex")
    assert r"base \& co" in latex
    assert r"math\_x" in latex
    assert "_x" not in latex.replace(r"\_x", "")
    lines = [line for line in latex.splitlines() if line.endswith(r" \\")]
    assert {line.replace(r"\&", "").count("&") for line in lines} == {13}


def test_broken_files_are_named(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = models / "tuned" / "eval-results" / "gsm8k" / "metrics.json"
    path.write_text('{"format": 99}')
    assert cli.main(["summarize_results", str(models)]) == 2
    error = capsys.readouterr().err
    assert str(path) in error
    assert "99" in error
    assert cli.main(["summarize_results", str(models / "nowhere")]) == 2
    assert "no results in" in capsys.readouterr().err


def test_short_names_tell_folders_apart() -> None:
    assert short_names(["/a/x/run", "/a/y/run"]) == {"/a/x/run": "x/run", "/a/y/run": "y/run"}
    assert short_names(["/a/x"]) == {"/a/x": "x"}
    assert short_names([]) == {}


def test_scores_reach_the_board(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.chdir(models)
    monkeypatch.setenv("WANDB_MODE", "offline")
    cli.summarize_results(folders=str(models / "tuned"), wandb_project="scores")
    (run,) = (models / "wandb").glob("offline-run-*")
    (record,) = run.glob("*.wandb")
    # a process of the library writes it
    wait_until("scores are written", lambda: b"gsm8k/pass@4/symbolic_correct" in record.read_bytes(), 60)
    assert wandb.run is None


def graded(folder: Path, *verdicts: str) -> None:
    """Write the files of a benchmark; each text has a letter a problem: right, wrong or failed."""
    names = {"r": "correct", "w": "incorrect", "f": "grader_error"}
    path = folder / "eval-results" / "sums"
    path.mkdir(parents=True)
    for run, word in enumerate(verdicts):
        rows = [
            {
                "id": i,
                "problem": f"p{i}",
                "verdict": names[letter],
                "graded_by": "math:1",
                "predicted_answer": "1",
            }
            for i, letter in enumerate(word)
        ]
        (path / f"output-rs{run}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        score(["++results_dir=eval-results", "++max_failed_share=1"])


def test_compare_two_models(
    weird_tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(weird_tmp_path)
    graded(Path("old"), "rrrrwwwwff", "rrrrwwwwff")
    graded(Path("new"), "rrrwrrrwrf", "rrrwrrwwrf")
    assert cli.main(["compare", "old", "new", "--format=json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)
    # the two problems that failed in one of them say nothing
    assert (result["problems"], result["only_first"], result["only_second"]) == (8, 0, 1)
    assert (result["first"], result["second"]) == (50.0, 68.75)
    assert result["difference"] == pytest.approx(18.75)
    assert result["low"] < 18.75 < result["high"]
    assert (result["gained"], result["lost"]) == (3, 1)
    assert (result["failed_first"], result["failed_second"], result["total_second"]) == (4, 2, 20)

    assert cli.main(["compare", "old", "new", "--show=1"]) == 0
    out = capsys.readouterr().out
    assert "+18.75" in out
    assert "4/20 → 2/20" in out
    assert "0.00 → 1.00" in out
    assert "and 2 more" in out
    assert "1.00 → 0.00" in out
    assert "0 and 1 problems are in one of them only" in out


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["old"], "two folders"),
        (["old", "nothing"], "there are none"),
        (["old", "."], "there are several"),
        (["old", "other"], "no benchmark in common"),
        (["old", "./old/eval-results"], "old and ./old/eval-results are the same results"),
    ],
)
def test_what_cannot_be_compared(
    folders: list[str],
    message: str,
    weird_tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(weird_tmp_path)
    Path("nothing").mkdir()
    save(Path("old"), report("gsm8k", 1.0))
    save(Path("other"), report("math", 1.0))
    assert cli.main(["compare", *folders]) == 2
    assert message in capsys.readouterr().err


def test_scores_can_wait_for_grades(weird_tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = weird_tmp_path / "sums"
    folder.mkdir()
    (folder / "output.jsonl").write_text('{"problem": "1+1", "generation": "2"}\n')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(weird_tmp_path)
        with pytest.raises(SystemExit):
            score(["++results_dir=.", "++require_graded=true"])
        assert "1 rows are not graded" in capsys.readouterr().err
        assert not (folder / "metrics.json").exists()
        score(["++results_dir=.", "++runs={sums: 1}"])
    assert not json.loads((folder / "metrics.json").read_text())["valid"]
