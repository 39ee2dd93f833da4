"""Finding benchmarks and groups; users' own; preparing several, once."""

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_skills.core.errors import UserError
from nemo_skills.dataset.answers import plain_number
from nemo_skills.dataset.choices import choice_row, shuffled
from nemo_skills.dataset.lookup import (
    GROUPS,
    default_data_dir,
    get_benchmark,
    get_benchmarks,
    list_benchmarks,
)
from nemo_skills.dataset.rows import SourceRow

SAMPLES = Path(__file__).parents[1] / "data" / "benchmarks"
INIT = """
from nemo_skills.dataset.base import BenchmarkDefaults

DEFAULTS = BenchmarkDefaults(prompt_config="generic/math", eval_split="easy", rows=2)
"""
ROW = {"problem": "1 + 1", "expected_answer": "2"}


def own_benchmark(folder: Path, name: str = "my-sums", init: str = INIT) -> Path:
    found = folder / name
    found.mkdir(parents=True)
    (found / "__init__.py").write_text(init)
    return found


def write_rows(path: Path, rows: Iterable[object]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def run_prepare(*args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nemo_skills.dataset.prepare", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


# --- names


def test_dashes_underscores_and_capitals_do_not_matter() -> None:
    assert get_benchmark("math_500") == get_benchmark("MATH-500")
    assert get_benchmark("minerva_math").name == "minerva-math"
    assert get_benchmark("human-eval").folder.name == "human_eval"


def test_groups_stand_for_benchmarks_that_exist() -> None:
    for group, members in GROUPS.items():
        assert [found.name for found in get_benchmarks([group])] == list(members)
    names = [found.name for found in get_benchmarks(["aime25", "aime", "AIME24"])]
    assert names == ["aime25", "aime24"]
    assert set(list_benchmarks()) >= {name for members in GROUPS.values() for name in members}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gsm8", r"unknown benchmark 'gsm8'\. Did you mean 'gsm8k'\?\nBenchmarks: aime24, "),
        ("math-al", r"Did you mean 'math-all'"),
        ("math_all", "It is a group"),
        ("../gsm8k", "unknown benchmark"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        get_benchmark(name)


def test_data_dir(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NEMO_SKILLS_DATA_DIR", raising=False)
    assert default_data_dir() == Path("data")
    monkeypatch.setenv("NEMO_SKILLS_DATA_DIR", "/shared/rows")
    assert get_benchmark("gpqa").data_path(default_data_dir()) == Path("/shared/rows/gpqa/diamond.jsonl")
    assert get_benchmark("gpqa").data_path("/d", "main") == Path("/d/gpqa/main.jsonl")


def test_lookup_is_light() -> None:
    program = (
        "import sys; from nemo_skills.dataset.lookup import *; get_benchmarks(list_benchmarks());"
        "print(*[m for m in ('hydra', 'omegaconf', 'urllib.request', 'orjson') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "\n"


# --- users' own


def test_own_benchmark_with_its_rows(weird_tmp_path: Path) -> None:
    folder = own_benchmark(weird_tmp_path)
    write_rows(folder / "easy.jsonl", [ROW, ROW])
    found = get_benchmark("my_sums", weird_tmp_path)
    assert (found.name, found.defaults.rows, found.is_own) == ("my-sums", 2, True)
    assert found.data_path("/elsewhere") == folder / "easy.jsonl"
    assert found.data_path("/elsewhere", "hard") == Path("/elsewhere/my-sums/hard.jsonl")
    assert list_benchmarks(weird_tmp_path)[-1] == "my-sums"
    assert get_benchmark("gsm8k", weird_tmp_path) == get_benchmark("gsm8k")
    with pytest.raises(UserError, match=r"Did you mean 'my-sums'\?\n.*\nin .*: my-sums"):
        get_benchmark("mysums", weird_tmp_path)
    ended = run_prepare("my-sums", "--extra_datasets", weird_tmp_path)
    assert (ended.returncode, ended.stdout.count("2 rows in")) == (0, 1)


@pytest.mark.parametrize(
    ("name", "init", "message"),
    [
        ("gsm8k", INIT, "gsm8k has a name that is taken already"),
        ("math_all", INIT, "math_all has a name that is taken already"),
        ("mine", "DEFAULTS = {}", r"mine/__init__\.py must say DEFAULTS = BenchmarkDefaults"),
        ("mine", INIT.replace("rows=2", "row=2"), r"mine/__init__\.py cannot be loaded: TypeError: .*'row'"),
        ("mine", "import no_such_module", "cannot be loaded: ModuleNotFoundError"),
    ],
)
def test_own_benchmarks_that_are_not_as_they_should_be(
    name: str, init: str, message: str, tmp_path: Path
) -> None:
    own_benchmark(tmp_path, name, init)
    with pytest.raises(UserError, match=message):
        get_benchmark(name, tmp_path)


def test_extra_datasets_is_a_folder_of_folders(tmp_path: Path) -> None:
    folder = own_benchmark(tmp_path)
    with pytest.raises(UserError, match="is one benchmark; give the folder that it lies in"):
        get_benchmark("my-sums", folder)
    with pytest.raises(UserError, match="is no folder"):
        get_benchmark("my-sums", tmp_path / "none")


def test_own_prepare_script(weird_tmp_path: Path) -> None:
    own, data = weird_tmp_path / "own", weird_tmp_path / "data"
    folder = own_benchmark(own)
    args = ("my-sums", "--extra_datasets", own, "--data_dir", data)
    ended = run_prepare(*args)
    assert (ended.returncode, ended.stderr) == (2, f"Error: {folder} has neither easy.jsonl nor prepare.py\n")

    (folder / "prepare.py").write_text("raise SystemExit(7)")
    ended = run_prepare(*args)
    assert ended.returncode == 1
    assert "prepare.py failed with exit code 7" in ended.stderr

    script = "import sys, pathlib; out = pathlib.Path(sys.argv[sys.argv.index('--output_dir') + 1]);"
    (folder / "prepare.py").write_text(f"{script} (out / 'easy.jsonl').write_text({json.dumps(ROW)!r})")
    ended = run_prepare(*args)
    assert ended.returncode == 0, ended.stderr
    assert json.loads((data / "my-sums" / "easy.jsonl").read_text()) == ROW
    (folder / "prepare.py").write_text("raise SystemExit(7)")
    assert "ready already" in run_prepare(*args).stdout
    assert run_prepare(*args, "--overwrite").returncode == 1


# --- several at once


def test_what_is_intact_is_not_prepared_again(weird_tmp_path: Path) -> None:
    source = weird_tmp_path / "svamp.json"
    source.write_bytes((SAMPLES / "svamp.json").read_bytes())
    args = ("svamp", "--data_dir", weird_tmp_path / "d", "--source", source)
    first = run_prepare(*args)
    assert first.returncode == 0, first.stderr
    assert "2 rows in" in first.stdout
    assert "content not checked: no hash of it is known" in first.stdout
    output = weird_tmp_path / "d" / "svamp" / "test.jsonl"
    before = output.stat().st_mtime_ns
    assert "ready already, not prepared again" in run_prepare(*args).stdout
    assert output.stat().st_mtime_ns == before

    good = output.read_bytes()
    for damage in (lambda: output.write_bytes(good[:-20]), output.unlink):
        damage()
        assert "ready already" not in run_prepare(*args).stdout
        assert output.read_bytes() == good
    # new rows without their manifest, as after a kill
    (output.parent / "test.manifest.json").write_text("{")
    assert "ready already" not in run_prepare(*args).stdout
    assert "ready already" not in run_prepare(*args, "--overwrite").stdout


def test_a_failure_keeps_nobody_else_from_being_prepared(
    weird_tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    own = own_benchmark(weird_tmp_path)
    write_rows(own / "easy.jsonl", [ROW])
    ended = run_prepare(
        "aime", "my-sums", "--extra_datasets", weird_tmp_path, "--data_dir", weird_tmp_path / "data"
    )
    assert ended.returncode == 1
    assert ended.stdout.splitlines()[-1] == "0 prepared, 1 ready already, 2 failed"
    errors = ended.stderr.splitlines()
    assert [line.partition(":")[0] for line in errors] == ["aime24", "aime25", "Warning", "Error"]
    assert errors[-1] == "Error: not prepared: aime24, aime25"
    assert "has 1 rows, but my-sums easy has" in errors[-2]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("gpqa", "--split", "test"), "there is no split 'test'; there are diamond, main, extended"),
        (("aime", "--source", "x.jsonl"), "--source has the files of one benchmark"),
        (("gsm8k", "--source", "/no/such.jsonl"), "Input file /no/such.jsonl does not exist"),
        (("gsm9k",), "Did you mean 'gsm8k'"),
    ],
)
def test_mistakes_are_one_message(args: tuple[str, ...], message: str, tmp_path: Path) -> None:
    ended = run_prepare(*args, "--data_dir", tmp_path)
    assert ended.returncode == 2
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr


# --- small parts


@given(st.text(), st.lists(st.text(), min_size=2, max_size=10))
def test_shuffled_options_are_the_same_ones(problem: str, options: list[str]) -> None:
    found, correct = shuffled(problem, options[0], options[1:])
    assert sorted(found) == sorted(options)
    assert found[correct] == options[0]
    assert shuffled(problem, options[0], options[1:]) == (found, correct)
    row = choice_row(SourceRow(values={}, file="f", number=1), problem, found, correct)
    assert row["options"]["ABCDEFGHIJ".index(row["expected_answer"])] == options[0]


def test_correct_options_are_spread_evenly() -> None:
    places = [shuffled(f"question {number}", "right", ["a", "b", "c"])[1] for number in range(2000)]
    # three standard deviations of 2000 draws with probability 1/4 are 58
    assert all(abs(places.count(place) - 500) < 100 for place in range(4))


@given(st.integers(), st.booleans())
def test_plain_numbers(number: int, decimal: bool) -> None:
    assert plain_number(f"{number}.0" if decimal else f"{number}") == str(number)
    assert plain_number(f"{number:,}") == str(number)


@pytest.mark.parametrize(
    ("text", "plain"), [("007", "7"), ("-0.50", "-0.50"), ("1,234.5", "1234.5"), ("1,2", "1,2"), ("x", "x")]
)
def test_other_texts_stay(text: str, plain: str) -> None:
    assert plain_number(text) == plain


def test_the_documentation_lists_every_benchmark() -> None:
    page = (Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text()
    for benchmark in get_benchmarks(list_benchmarks()):
        [line] = [line for line in page.splitlines() if line.startswith(f"| `{benchmark.name}` |")]
        found, what = [cell.strip() for cell in line.strip("|").split("|")], benchmark.defaults
        assert found[2:] == [f"{what.eval_split}: {what.rows}", what.grader, what.licence or "not stated"]
        assert all(f"[{title}]({url})" in found[1] for title, url in zip(
            what.title.split(", "), what.origin.split(", "), strict=True
        ))  # fmt: skip
    assert all(f"`{group}`" in page for group in GROUPS)
