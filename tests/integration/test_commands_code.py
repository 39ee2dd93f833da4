"""Which code jobs run: `--reuse_code` within a Python session, and `--reuse_code_exp` from an earlier one."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nemo_skills.core.errors import UserError
from nemo_skills.pipeline import cli
from nemo_skills.pipeline.cli import wrap_arguments
from nemo_skills.pipeline.launch import code
from nemo_skills.pipeline.launch.records import latest
from tests.integration import places
from tests.integration.places import Place


@pytest.fixture(params=["docker", "slurm-bare"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    with places.place(request.param, request, tmp_path, monkeypatch) as found:
        subprocess.run(["git", "init", "-q"], check=True)
        yield found


def commit(version: str) -> None:
    Path("version.txt").write_text(version)
    identity = ["-c", "user.name=t", "-c", "user.email=t@t"]
    subprocess.run(["git", "add", "version.txt"], check=True)
    subprocess.run(["git", *identity, "commit", "-qm", version], check=True)


def version_in_job(place: Place, **options: object) -> str:
    """Run a job in the packaged code and return what it finds there."""
    Path(place.folder / "out").unlink(missing_ok=True)
    out = "/workspace/out" if place.name == "docker" else str(place.folder / "out")
    cli.run_cmd(wrap_arguments(f"cat version.txt > '{out}'"), cluster=place.config, **options)
    place.wait(str(options.get("expname", "run_cmd")))
    return (place.folder / "out").read_text()


def test_code_is_packaged_once_in_a_session_unless_told_otherwise(place: Place) -> None:
    commit("one")
    assert version_in_job(place, expname="first") == "one"
    commit("two")
    Path("version.txt").write_text("not committed, and not looked at")
    assert version_in_job(place) == "one"
    Path("version.txt").write_text("two")
    assert version_in_job(place, reuse_code=False) == "two"
    assert version_in_job(place) == "two", "the code that was packaged last"
    code._session.clear()  # as a new Python session
    commit("three")
    assert version_in_job(place, reuse_code_exp="first") == "one"
    assert version_in_job(place) == "three"


def test_code_that_is_not_there(place: Place) -> None:
    commit("one")
    version_in_job(place, expname="first")
    elsewhere = place.folder / "elsewhere"
    Path(latest("first").code_dir or "").rename(elsewhere)
    with pytest.raises(UserError, match=r"--reuse_code_exp\) is no longer"):
        version_in_job(place, reuse_code_exp="first")
    cli.run_cmd(wrap_arguments("true"), expname="here")
    with pytest.raises(UserError, match="has no code for executor"):
        version_in_job(place, reuse_code_exp="here")
