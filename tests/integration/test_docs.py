"""Commands of the documentation that are marked as such are run, page by page, as a reader would."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPO

_BLOCK = re.compile(r"<!-- run -->\n```bash\n(.*?)^```", re.DOTALL | re.MULTILINE)
_PAGES = [path for path in sorted((REPO / "docs").glob("*.md")) if _BLOCK.search(path.read_text())]


def test_there_are_commands_to_run() -> None:
    assert len(_PAGES) >= 4


@pytest.mark.service("hf")
@pytest.mark.parametrize("page", _PAGES, ids=lambda page: page.stem)
def test_commands_of_a_page_work(page: Path, tmp_path: Path) -> None:
    script = "set -euxo pipefail\n" + "\n".join(_BLOCK.findall(page.read_text()))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env=os.environ | {"PATH": path, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
