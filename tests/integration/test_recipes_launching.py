"""Scripts launched with NeMo-Run on this machine: arguments, failures, and a forgotten main guard."""

import os
import subprocess
import sys
from pathlib import Path

LAUNCH = """
import sys
import nemo_run as run
from nemo_skills.core.script import run_script
from nemo_skills.training.recipes.launching import launch
from nemo_skills.training.recipes.plugins import PerfEnvPlugin

def main():
    executor, plugins = run.LocalExecutor(), [PerfEnvPlugin(variables={"MINE": "1"})]
    by_path = run.Script(path="print_args.py", entrypoint=sys.executable, args=sys.argv[1:])
    launch(by_path, executor, plugins=plugins, name="by-path")
    launch(run.Script(inline="echo $MINE > inline.txt"), executor, plugins=plugins, name="inline")
    launch(run.Script(inline="exit 3"), executor, name="failing")
    open("never", "w")

if __name__ == "__main__":
    run_script(main)
"""
WITHOUT_GUARD = """
from multiprocessing import get_context
import nemo_run as run
from nemo_skills.training.recipes.launching import launch

launch(run.Script(inline="echo x >> launched"), run.LocalExecutor())
with get_context("spawn").Pool(2) as pool:
    pool.map(abs, range(4))
"""


def run_python(folder: Path, text: str, *args: str) -> "subprocess.CompletedProcess[str]":
    script = folder / "launch.py"
    script.write_text(text)
    argv = [sys.executable, str(script), *args]
    env = {**os.environ, "COLUMNS": "500"}
    return subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True, timeout=200)


def test_arguments_are_forwarded_and_failures_told(tmp_path: Path) -> None:
    (tmp_path / "print_args.py").write_text("import sys; open('args.txt', 'w').write('|'.join(sys.argv[1:]))")
    ended = run_python(tmp_path, LAUNCH, "a b", "++model.x=4", "it's $HOME")
    assert (tmp_path / "args.txt").read_text() == "a b|++model.x=4|it's $HOME", ended.stderr
    assert (tmp_path / "inline.txt").read_text() == "1\n"
    assert ended.returncode == 1
    assert "Error: failing: FAILED, see " in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "never").exists()


def test_a_script_without_guard_launches_once(tmp_path: Path) -> None:
    ended = run_python(tmp_path, WITHOUT_GUARD)
    assert ended.returncode < 0
    assert ended.stderr.count("launch.py:6 launches again") == 1, ended.stderr
    assert (tmp_path / "launched").read_text() == "x\n"
