"""The grading main: in place, at once, again, after kill -9; and scoring what it wrote."""

import json
import os
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import pytest

from nemo_skills.core.jsonl import Written
from nemo_skills.evaluation import evaluate as evaluate_main
from nemo_skills.evaluation import score as score_main
from nemo_skills.evaluation.metrics.report import BenchmarkReport
from nemo_skills.inference.done import DoneMark, OutputStamp
from nemo_skills.inference.survey import InputState, Selection

REPO = Path(__file__).resolve().parents[2]
OBEDIENT = "++eval_type=tests.unit.eval_graders:Obedient"
WAIT_S = 60.0


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def boxed(answers: list[str], **fields: Any) -> list[dict[str, Any]]:
    return [
        {"id": n, "problem": f"p{n}", "expected_answer": "1", "generation": f"\\boxed{{{a}}}", **fields}
        for n, a in enumerate(answers)
    ]


def evaluate(*args: str, code: int = 0) -> None:
    try:
        evaluate_main.run(["++processes=2", *args])
    except SystemExit as ended:
        assert ended.code == code
    else:
        assert code == 0


def score(folder: Path, *args: str) -> dict[str, BenchmarkReport]:
    score_main.run([f"++results_dir={folder}", *args])
    paths = sorted(folder.glob("*/metrics.json"))
    return {path.parent.name: BenchmarkReport.from_json(json.loads(path.read_text())) for path in paths}


def test_files_are_graded_in_place(weird_tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = boxed(["1", "2", "01", "1.0"])
    rows[1]["big"] = 12345678901234567890123
    path = write(weird_tmp_path / "output.jsonl", rows)
    evaluate(f"++input_files={json.dumps([str(path)])}")
    graded = read(path)
    assert [row["verdict"] for row in graded] == ["correct", "incorrect", "correct", "correct"]
    assert [row["predicted_answer"] for row in graded] == ["1", "2", "01", "1.0"]
    assert [{k: row[k] for k in old} for row, old in zip(graded, rows, strict=True)] == rows
    assert list(weird_tmp_path.iterdir()) == [path]


def test_only_what_changed_is_graded_again(tmp_path: Path) -> None:
    path = write(tmp_path / "output.jsonl", [{"do": str(n)} for n in range(5)])
    evaluate(f"++input_files={path}", OBEDIENT)
    first = read(path)
    stat = path.stat()
    evaluate(f"++input_files={path}", OBEDIENT)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (stat.st_ino, stat.st_mtime_ns)
    # a verdict must not outlive the answer that it is about
    rows = read(path)
    rows[2]["do"] = "another"
    write(path, rows)
    evaluate(f"++input_files={path}", OBEDIENT)
    second = read(path)
    assert second[2]["predicted_answer"] == "another"
    same_process = [a["grade_details"] == b["grade_details"] for a, b in zip(first, second, strict=True)]
    assert same_process == [True, True, False, True, True]
    evaluate(f"++input_files={path}", OBEDIENT, "++regrade=true")
    assert all(a["grade_details"] != b["grade_details"] for a, b in zip(second, read(path), strict=True))


def test_other_settings_grade_again(tmp_path: Path) -> None:
    path = write(tmp_path / "output.jsonl", boxed(["1"]))
    evaluate(f"++input_files={path}")
    evaluate(f"++input_files={path}", "++grader.extract_regex=X(.)")
    assert read(path)[0]["verdict"] == "no_answer"
    assert read(path)[0]["grade_details"] is None


def test_generation_still_knows_its_output(tmp_path: Path) -> None:
    path = write(tmp_path / "output.jsonl", boxed(["1", "2"]))
    data = path.read_bytes()
    stamp = OutputStamp.of(path, Written(2, len(data), zlib.crc32(data)))
    mark = tmp_path / "output.jsonl.done"
    source = InputState(stamps=(), selection=Selection(None, None, None), parts=(), total=2, checked=True)
    DoneMark(rows=2, failed=0, skipped=0, source=source, output=stamp).write(mark, [b"0" * 32])
    evaluate(f"++input_files={path}")
    after = DoneMark.read(mark)
    assert after.output is not None
    assert after.output != stamp
    assert after.output.fits(path)
    assert mark.read_bytes().endswith(b"0" * 32)


def test_kill_9_loses_nothing(tmp_path: Path) -> None:
    rows = [{"do": {"sleep": 0.02}} for _ in range(400)]
    path = write(tmp_path / "output.jsonl", rows)
    before = path.read_bytes()
    argv = [sys.executable, "-m", "nemo_skills.evaluation.evaluate", f"++input_files={path}", OBEDIENT]
    argv += ["++processes=2"]
    journal = tmp_path / "output.jsonl-grading"
    program = subprocess.Popen(
        argv, cwd=REPO, env={**os.environ, "PYTHONPATH": "."}, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + WAIT_S
    while not journal.exists() or journal.stat().st_size < 4000:
        assert program.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    program.send_signal(signal.SIGKILL)
    program.wait()
    assert path.read_bytes() == before
    kept = journal.read_bytes().count(b'"verdict"')
    assert kept
    again = subprocess.run(
        argv,
        cwd=REPO,
        env={**os.environ, "PYTHONPATH": "."},
        stderr=subprocess.PIPE,
        text=True,
        timeout=WAIT_S,
    )
    assert again.returncode == 0
    assert f"400 rows: 400 correct; {400 - kept} graded" in again.stderr
    assert all(row["verdict"] == "correct" for row in read(path))
    assert not journal.exists()


def test_messages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = write(tmp_path / "good.jsonl", boxed(["1"]))
    lacking = write(tmp_path / "lacking.jsonl", [*boxed(["1"]), {"problem": "p", "generation": "g"}])
    several = write(tmp_path / "several.jsonl", [{"generation": ["a", "b"], "expected_answer": "1"}])
    evaluate(f"++input_files={lacking},{several},{good}", code=2)
    said = capsys.readouterr().err
    assert f"{lacking}:2: the grader needs 'expected_answer'; keys of the row: problem, generation" in said
    assert f"{several}:1: 'generation' is a list" in said
    assert "verdict" not in read(lacking)[0]
    assert read(good)[0]["verdict"] == "correct"  # the others do not keep it from being graded
    evaluate(f"++input_files={good}", "++grader.tolerence=1", code=2)
    assert "tolerence: unknown key. Did you mean 'tolerance'?" in capsys.readouterr().err
    evaluate(f"++input_files={good}", "++eval_type=mth", code=2)
    assert "Did you mean 'math'?" in capsys.readouterr().err


def test_scores_of_several_runs(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    stats = {"num_generated_tokens": 10, "finish_reason": "stop", "level": 1}
    runs = (["1", "1", "2"], ["1", "2", "2"])
    for run, answers in enumerate(runs):
        started = 100.0 + 86_400 * run  # the second one only the day after
        rows = boxed(answers, **stats, generation_start_time=started, generation_end_time=started + 3.5)
        rows[2]["level"] = 2
        write(folder / f"output-rs{run}.jsonl", rows)
    evaluate(f"++input_files={folder}/output-rs*.jsonl")
    report = score(tmp_path, "++group_by=[level]")["demo"]
    assert (report.rows, report.samples, report.valid, report.eval_type) == (3, 2, True, "math")
    assert report.measure == "symbolic_correct"
    assert report.score is not None
    assert report.score.value == pytest.approx(50.0)
    assert report.metrics["pass@2"]["symbolic_correct"].value == pytest.approx(200 / 3)
    assert report.metrics["majority@2"]["symbolic_correct"].value == pytest.approx(50.0)
    assert (report.avg_tokens, report.generation_seconds) == (10.0, 7.0)
    assert [(g.field, g.value, g.rows, g.counts.correct) for g in report.groups] == [
        ("level", "1", 2, 3),
        ("level", "2", 1, 0),
    ]


def test_infrastructure_failures_are_shown_and_never_wrong(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    rows = [{"id": n, "do": "fine"} for n in range(8)]
    rows[3]["do"] = "raise"  # the grader breaks down
    write(folder / "output.jsonl", rows[:7])
    write(folder / "output.failed.jsonl", [{**rows[7], "_position": 7, "_line": 8, "_error": "timeout"}])
    evaluate(f"++input_files={folder / 'output.jsonl'}", OBEDIENT)
    report = score(tmp_path)["demo"]
    assert report.score is not None
    assert (report.score.value, report.score.problems, report.rows) == (100.0, 6, 8)
    assert (report.counts.failed, report.counts.grader_error, report.counts.total) == (1, 1, 8)
    assert not report.valid
    assert "2 of 8 answers (25.0%) have no verdict" in str(report.why_invalid)
    assert score(tmp_path, "++max_failed_share=0.25")["demo"].valid


def test_truncated_and_missing_answers_are_noticed(tmp_path: Path) -> None:
    long = [{"id": n, "do": "x", "finish_reason": "length" if n < 3 else "stop"} for n in range(10)]
    write(tmp_path / "demo" / "output-rs0.jsonl", long)
    write(tmp_path / "demo" / "output-rs1.jsonl", long[:9])
    evaluate(f"++input_files={tmp_path}/demo/output-rs?.jsonl", OBEDIENT)
    report = score(tmp_path)["demo"]
    assert (report.counts.truncated, report.counts.failed, report.counts.total) == (6, 1, 20)
    assert "6 of 20 answers (30.0%) were cut off" in str(report.why_invalid)
    assert "1 of 20 answers (5.0%) have no verdict" in str(report.why_invalid)


def test_greedy_beside_seeds(tmp_path: Path) -> None:
    for name in ("output", "output-rs0", "output-rs1"):
        write(tmp_path / "demo" / f"{name}.jsonl", boxed(["1", "2" if name == "output" else "1"]))
    write(tmp_path / "demo" / "output_chunk_0.jsonl", boxed(["9"]))
    evaluate(f"++input_files={tmp_path}/demo/output.jsonl,{tmp_path}/demo/output-rs*.jsonl")
    report = score(tmp_path)["demo"]
    assert report.files == ("output-rs0.jsonl", "output-rs1.jsonl")
    assert report.score is not None
    assert report.score.value == 100.0
    assert report.metrics["pass@1"]["symbolic_correct"].value == 50.0


def test_one_seed_beside_a_greedy_run(tmp_path: Path) -> None:
    for name, answers in (("output", ["1", "2"]), ("output-rs0", ["1", "1"])):
        write(tmp_path / "demo" / f"{name}.jsonl", boxed(answers, level=1))
    evaluate(f"++input_files={tmp_path}/demo/*.jsonl")
    report = score(tmp_path, "++group_by=[level]")["demo"]
    values = {mode: scores["symbolic_correct"].value for mode, scores in report.metrics.items()}
    assert values == {"pass@1[avg-of-1]": 100.0, "pass@1": 50.0}
    assert [list(group.metrics) for group in report.groups] == [["pass@1[avg-of-1]"]]


def test_grades_by_different_settings_are_no_score(tmp_path: Path) -> None:
    for run in range(2):
        write(tmp_path / "demo" / f"output-rs{run}.jsonl", boxed(["1", "2"], level=1))
        evaluate(f"++input_files={tmp_path}/demo/output-rs{run}.jsonl", f"++grader.tolerance={run + 1}e-3")
    report = score(tmp_path, "++group_by=[level]")["demo"]
    assert "different settings" in str(report.why_invalid)
    assert not report.groups[0].valid
    evaluate(f"++input_files={tmp_path}/demo/output-rs?.jsonl")
    assert score(tmp_path)["demo"].valid


def test_groups_are_valid_or_not_by_themselves(tmp_path: Path) -> None:
    rows = [{"id": n, "do": "x", "level": n // 10, "finish_reason": "stop"} for n in range(20)]
    for row in rows[:3]:
        row["finish_reason"] = "length"
    write(tmp_path / "demo" / "output.jsonl", rows)
    evaluate(f"++input_files={tmp_path}/demo/output.jsonl", OBEDIENT)
    report = score(tmp_path, "++group_by=[level]")["demo"]
    assert [(group.value, group.valid) for group in report.groups] == [("0", False), ("1", True)]
    assert "3 of 10 answers" in str(report.groups[0].why_invalid)
    missing = score(tmp_path, "++group_by=[level]", "++runs={demo: 2}")["demo"]
    assert [group.why_invalid for group in missing.groups][1] == "1 of 2 runs are there"


def test_a_benchmark_without_results_does_not_keep_others_from_being_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("demo", "other"):
        write(tmp_path / name / "output.jsonl", boxed(["1"]))
    with pytest.raises(SystemExit):
        score_main.run([f"++results_dir={tmp_path}", "++benchmarks=[lost,demo]"])
    assert "has no results of 'lost'" in capsys.readouterr().err
    assert [path.parent.name for path in tmp_path.glob("*/metrics.json")] == ["demo"]


def test_a_mark_says_that_all_is_graded(tmp_path: Path) -> None:
    path, mark = write(tmp_path / "output.jsonl", boxed(["1"])), tmp_path / "mark"
    evaluate(f"++input_files={path},{tmp_path}/lost.jsonl", f"++done_mark={mark}", code=2)
    assert not mark.exists()
    evaluate(f"++input_files={path}", f"++done_mark={mark}")
    assert mark.exists()


def test_what_broke_the_grader_is_graded_again(tmp_path: Path) -> None:
    path, mark = write(tmp_path / "output.jsonl", [{"do": "1"}, {"do": "raise"}]), tmp_path / "mark"
    evaluate(f"++input_files={path}", OBEDIENT, f"++done_mark={mark}")
    first = read(path)
    assert [row["verdict"] for row in first] == ["correct", "grader_error"]
    assert not mark.exists()
    # as if it had been repaired
    broken = first[1] | {"do": "2"}
    broken["graded_by"] = first[0]["graded_by"]
    write(path, [first[0], broken])
    evaluate(f"++input_files={path}", OBEDIENT, f"++done_mark={mark}")
    assert [row["verdict"] for row in read(path)] == ["correct", "correct"]
    assert read(path)[0] == first[0]
    assert mark.exists()


def test_ungraded_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "demo" / "output.jsonl", boxed(["1"]))
    report = score(tmp_path)["demo"]
    assert (report.score, report.valid, report.counts.ungraded) == (None, False, 1)
    for args, message in (
        (["++results_dir=" + str(tmp_path / "none")], "is not a folder"),
        ([f"++results_dir={tmp_path}", "++benchmarks=[dmo]"], "Did you mean 'demo'?"),
    ):
        with pytest.raises(SystemExit):
            score_main.run(args)
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("module", ["evaluate", "score"])
def test_importing_a_main_is_light(module: str) -> None:
    code = f"import sys, nemo_skills.evaluation.{module}; print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPO
    )
    heavy = {"torch", "transformers", "sympy", "math_verify", "hydra", "numpy", "aiohttp", "openai"}
    assert not heavy & set(modules.stdout.split())
