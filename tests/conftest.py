"""Fixtures and service rules shared by all tests."""

import os
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]


@pytest.fixture
def weird_tmp_path(tmp_path: Path) -> Path:
    """A folder whose name breaks anything that forgets to quote."""
    folder = tmp_path / "we ird'\"$dir"
    folder.mkdir()
    return folder


@pytest.fixture(autouse=True)
def own_nemorun_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep experiment metadata of tests out of the user's home."""
    home = tmp_path_factory.mktemp("nemorun")
    monkeypatch.setenv("NEMORUN_HOME", str(home))
    return home


@pytest.fixture
def ns() -> list[str]:
    """The `ns` command of this checkout as an argv prefix."""
    return [sys.executable, "-m", "nemo_skills.pipeline.cli"]


def required_services() -> set[str]:
    return set(filter(None, os.environ.get("NS_TEST_REQUIRE", "").split(",")))
