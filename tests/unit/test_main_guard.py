"""Scripts that launch when a process which they started imports them end with one clear error."""

import subprocess
import sys
from pathlib import Path

import pytest

LAUNCHES = """
import os, sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from nemo_skills.core.main_guard import refuse_reimport, watch_reimport
watch_reimport()

def square(x):
    return x * x

def launch():
    refuse_reimport()
    with open("launched", "a") as file:
        file.write(f"{os.getpid()}\\n")
    with get_context(sys.argv[1]).Pool(3) as pool:
        print(pool.map(square, range(3)))
"""
UNGUARDED, GUARDED = "launch()\n", 'if __name__ == "__main__":\n    launch()\n'
STARTS_FIRST = """
import sys
from multiprocessing import get_context
from nemo_skills.core.main_guard import refuse_reimport, watch_reimport
watch_reimport()
pool = get_context(sys.argv[1]).Pool(3)
print(pool.map(abs, [-1]))
refuse_reimport()
"""


def run_script(folder: Path, text: str, how: str) -> "subprocess.CompletedProcess[str]":
    script = folder / "my script.py"
    script.write_text(text)
    return subprocess.run(
        [sys.executable, script, how], cwd=folder, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("how", ["spawn", "forkserver"])
@pytest.mark.parametrize("text", [LAUNCHES + UNGUARDED, STARTS_FIRST])
def test_a_script_without_guard_ends_with_one_error(text: str, how: str, tmp_path: Path) -> None:
    ended = run_script(tmp_path, text, how)
    assert ended.returncode < 0  # it is ended, else its pool would start processes for ever
    errors = [line for line in ended.stderr.splitlines() if "Error" in line]
    assert len(errors) == 1, ended.stderr
    line = 1 + text.splitlines().index(
        "launch()" if "launch()" in text else "pool = get_context(sys.argv[1]).Pool(3)"
    )
    assert f"my script.py:{line} launches again" in errors[0]
    assert '`if __name__ == "__main__":`' in errors[0]
    assert "Traceback" not in ended.stderr
    if "launch()" in text:
        assert len((tmp_path / "launched").read_text().splitlines()) == 1


@pytest.mark.parametrize("how", ["spawn", "forkserver"])
def test_a_script_with_guard_is_left_alone(how: str, tmp_path: Path) -> None:
    ended = run_script(tmp_path, LAUNCHES + GUARDED, how)
    assert (ended.returncode, ended.stdout) == (0, "[0, 1, 4]\n"), ended.stderr
    assert len((tmp_path / "launched").read_text().splitlines()) == 1
