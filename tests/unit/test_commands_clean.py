"""`ns clean` on this machine, and its script on a made-up cluster."""

import dataclasses
import os
import shlex
import time
from pathlib import Path

import pytest

from nemo_skills.core.errors import UserError
from nemo_skills.pipeline import cli
from nemo_skills.pipeline.clean import seconds
from nemo_skills.pipeline.cluster.tunnel import LocalTunnel
from nemo_skills.pipeline.launch.cleaning import clean_script, read_leftovers
from nemo_skills.pipeline.launch.owner import this_process
from nemo_skills.pipeline.launch.records import RUNNING, SUCCEEDED, JobRecord, Record, all_records

DAY_S = 86400
NOW_S = time.time()


def make(home: Path, name: str, days: float, **changes: object) -> Record:
    """An experiment that was launched some days ago, and its folders."""
    record = Record(
        expname=name,
        id=f"{name}_{int((NOW_S - days * DAY_S) * 1e9)}",
        cluster="none",
        executor="none",
        log_dir="/logs",
        state=SUCCEEDED,
        jobs=(JobRecord(name="a", log="/logs/a-main.log"),),
        owner=this_process(),
    )
    record = dataclasses.replace(record, **changes)  # type: ignore[arg-type]
    record = dataclasses.replace(record, exp_dir=record.exp_dir or str(record.folder))
    for folder in (record.folder, home / "ns_docker" / name / record.id, home / "ns_logs" / name):
        fill(folder, days)
    if record.code_dir:
        fill(Path(record.code_dir), days)
    record.save()
    return record


def fill(folder: Path, days: float) -> Path:
    (folder / "sub").mkdir(parents=True, exist_ok=True)
    (folder / "sub" / "file").write_text("x" * 5000)
    age(folder, days)
    return folder


def age(path: Path, days: float) -> None:
    os.utime(path, (NOW_S - days * DAY_S,) * 2)


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_what_is_old_and_unused_goes(own_nemorun_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = own_nemorun_home
    old = make(home, "old", 8, code_dir=str(home / "ns_code" / "only-old"))
    make(home, "mixed", 9, code_dir=str(home / "ns_code" / "shared"))
    new = make(home, "mixed", 1, code_dir=str(home / "ns_code" / "shared"))
    for name, days in {"code-old.tar.gz": 30, "code-new.tar.gz": 1}.items():
        (home / "ns_packages").mkdir(exist_ok=True)
        (home / "ns_packages" / name).write_text("x")
        age(home / "ns_packages" / name, days)
    age(home / "ns_code" / "shared", 9)
    fill(home / "experiments" / "foreign" / "foreign_1", 99)
    before = files(home)

    assert cli.main(["clean"]) == 0
    out = capsys.readouterr().out
    assert files(home) == before, "without --yes nothing is removed"
    assert "7 found" in out
    assert "--yes removes them" in out

    assert cli.main(["clean", "--yes"]) == 0
    assert "7 removed" in capsys.readouterr().out
    left = files(home)
    assert [record.id for record in all_records()] == [new.id]
    assert left == {
        f"ns_records/mixed/{new.id}.json",
        f"experiments/mixed/{new.id}/sub/file",
        f"ns_docker/mixed/{new.id}/sub/file",
        "experiments/foreign/foreign_1/sub/file",
        "ns_code/shared/sub/file",
        "ns_packages/code-new.tar.gz",
        "ns_logs/mixed/sub/file",
    }
    assert not (home / "experiments" / "old").exists()
    assert str(old.folder) not in "".join(left)
    assert cli.main(["clean", "--yes"]) == 0
    assert capsys.readouterr().out == "0 removed, 0 kB\n"


def test_what_runs_stays(own_nemorun_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = str(own_nemorun_home / "ns_code" / "used")
    record = make(own_nemorun_home, "runs", 30, state=RUNNING, code_dir=code)
    (record.folder / "a").mkdir()
    (record.folder / "a" / "state").write_text("running\n")
    before = files(own_nemorun_home)
    assert cli.main(["clean", "--yes", "--older_than=0m"]) == 0
    assert files(own_nemorun_home) == before
    assert "its jobs have not ended" in capsys.readouterr().out


def test_slurm_experiments_need_their_cluster(own_nemorun_home: Path) -> None:
    jobs = (JobRecord(name="a", log="/logs/a", slurm_id="5"),)
    make(own_nemorun_home, "far", 30, executor="slurm", exp_dir="/jobs/far/far_1", jobs=jobs)
    before = files(own_nemorun_home)
    cli.clean(yes=True)
    assert files(own_nemorun_home) == before


@pytest.mark.parametrize(
    ("text", "expected"), [("90m", 5400), ("12h", 43200), ("7d", 604800), ("2w", 1209600), ("0d", 0)]
)
def test_ages(text: str, expected: int) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["7", "d", "-1d", "1y", "", "7 days"])
def test_wrong_ages(text: str) -> None:
    with pytest.raises(UserError, match="--older_than"):
        seconds(text)


# --- the script, with a squeue of our own


@pytest.fixture
def root(weird_tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of all experiments on a cluster whose queue is the file `queue`."""
    programs = weird_tmp_path / "bin"
    programs.mkdir()
    for name in ("squeue", "sbatch"):
        (programs / name).write_text(f"#!/bin/sh\ncat {shlex.quote(str(weird_tmp_path / 'queue'))}\n")
        (programs / name).chmod(0o755)
    (weird_tmp_path / "queue").write_text("")
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    folder = weird_tmp_path / "job dir"
    folder.mkdir()
    return folder


def experiment(root: Path, name: str, days: float, digest: str) -> Path:
    folder = root / name / f"{name}_{int((NOW_S - days * DAY_S) * 1e9)}"
    fill(folder / "job", days)
    (folder / "job" / "main.sh").write_text(f"cd '{root}/code/{digest}'\n")
    fill(root / "code" / digest, days)
    fill(root / "logs" / name, days)
    return folder


def clean(root: Path, *, remove: bool, days: float = 7) -> dict[str, list[str]]:
    script = clean_script(str(root), int(NOW_S - days * DAY_S), remove=remove)
    found: dict[str, list[str]] = {}
    for one in read_leftovers(LocalTunnel().run(script).stdout):
        found.setdefault(one.kind, []).append(str(Path(one.path).relative_to(root)))
    return found


def test_on_a_cluster_only_what_is_old_unused_and_ours_goes(root: Path) -> None:
    old, new, runs = (
        experiment(root, "old", 8, "a" * 64),
        experiment(root, "new", 1, "b" * 64),
        experiment(root, "runs", 9, "c" * 64),
    )
    age(root / "code" / ("b" * 64), 30)
    fill(root / "code" / ("d" * 64 + ".Xy12"), 30)
    other = fill(root / "not an experiment" / "folder_12345678901234567", 99)
    if os.getuid() == 0:
        os.chown(experiment(root, "theirs", 99, "e" * 64), 1234, 1234)
    # Slurm knows the folder by another name
    link = root.parent / "link"
    link.symlink_to(root)
    (root.parent / "queue").write_text(f"{link}/{runs.relative_to(root)}/job\n/somewhere/else\n")
    before = files(root)
    expected = {
        "busy": [str(runs.relative_to(root))],
        "experiment": [str(old.relative_to(root))],
        "code": [f"code/{'a' * 64}", f"code/{'d' * 64}.Xy12"],
        "logs": ["logs/old"],
    }
    assert clean(root, remove=False) == expected
    assert files(root) == before
    assert clean(root, remove=True) == expected
    gone = {path for paths in (expected["experiment"], expected["code"], expected["logs"]) for path in paths}
    assert files(root) == {path for path in before if not any(path.startswith(f"{g}/") for g in gone)}
    assert new.exists()
    assert other.exists()
    assert not (root / "old").exists()
    assert clean(root, remove=True) == {"busy": expected["busy"]}


def test_a_controller_that_is_silent_stops_everything(root: Path) -> None:
    experiment(root, "old", 8, "a" * 64)
    (root.parent / "queue").unlink()
    before = files(root)
    done = LocalTunnel().run(clean_script(str(root), int(NOW_S), remove=True), check=False)
    assert done.code == 98
    assert files(root) == before
