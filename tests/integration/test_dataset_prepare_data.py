"""`ns prepare_data` on this machine and on a real Slurm cluster."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from nemo_skills.core.errors import JobFailedError, UserError
from nemo_skills.pipeline import cli
from tests.conftest import REPO
from tests.integration import places
from tests.integration.places import Place

SAMPLES = REPO / "tests" / "data" / "benchmarks"


@pytest.fixture
def here(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    with places.place("none", request, tmp_path, monkeypatch) as found:
        yield found


@pytest.fixture(params=["none", "slurm-bare"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    with places.place(request.param, request, tmp_path, monkeypatch) as found:
        yield found


def test_a_benchmark_is_prepared_once(place: Place, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    source, data = SAMPLES / "human-eval", place.folder / "rows"
    words = [*place.cluster, "human_eval", f"--source={source}", f"--data_dir={data}"]
    assert place.ns("prepare_data", *words) == 0
    place.wait("prepare_data")
    rows = (data / "human-eval" / "test.jsonl").read_text().splitlines()
    assert [json.loads(row)["id"] for row in rows] == ["HumanEval/0", "HumanEval/1"]

    assert place.ns("prepare_data", *words, "--expname=again") == 0
    place.wait("again")
    capfdbinary.readouterr()
    assert place.ns("logs", "again") == 0
    assert b"human-eval: 2 rows in" in (said := capfdbinary.readouterr().out)
    assert b"ready already, not prepared again" in said
    assert b"has 2 rows, but human-eval test has 164" in said


def test_failures_end_in_the_jobs_exit_code(
    here: Place, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    own = here.folder / "own" / "sums"
    own.mkdir(parents=True)
    (own / "__init__.py").write_text(
        "from nemo_skills.dataset.base import BenchmarkDefaults\n"
        "DEFAULTS = BenchmarkDefaults(prompt_config='generic/math')\n"
    )
    (own / "test.jsonl").write_text('{"problem": "1 + 1", "expected_answer": "2"}\n')
    with pytest.raises(JobFailedError) as failed:
        cli.prepare_data(benchmarks=["aime24", "sums"], extra_datasets=own.parent)
    assert failed.value.exit_code == 1
    said = capfd.readouterr()
    lines = (said.out + said.err).splitlines()
    assert any(line.startswith("aime24: cannot download https://") for line in lines)
    assert "0 prepared, 1 ready already, 1 failed" in lines


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gsm9k"], "unknown benchmark 'gsm9k'. Did you mean 'gsm8k'?"),
        ([], "which benchmarks? Name some of: aime24, "),
        (["aime", "--source=x.jsonl"], "--source has the files of one benchmark"),
        (["sums", "--extra_datasets=/no/such"], "--extra_datasets: /no/such is no folder"),
    ],
)
def test_mistakes_are_found_before_anything_is_submitted(
    words: list[str], message: str, here: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    assert here.ns("prepare_data", *words) == 2
    assert message in capfd.readouterr().err
    assert not list(Path(os.environ["NEMORUN_HOME"]).iterdir())


def test_jobs_on_a_cluster_need_an_absolute_folder(here: Place) -> None:
    config = here.folder / "slurm.yaml"
    config.write_text("executor: slurm\ncontainer_runtime: none\njob_dir: /jobs\n")
    with pytest.raises(UserError, match=r"'data', must be an absolute path.*--data_dir"):
        cli.prepare_data(benchmarks="gsm8k", cluster=config, dry_run=True)


def test_dry_run_shows_the_job(here: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.prepare_data(benchmarks="aime", data_dir="my rows", dry_run=True) is None
    shown = capsys.readouterr().out
    assert "-m nemo_skills.dataset.prepare aime --data_dir 'my rows'" in shown
