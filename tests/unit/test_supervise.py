"""A job of several processes: first exit ends all, exit codes and signals arrive, nothing stays behind."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nemo_skills.core.errors import JobFailedError
from nemo_skills.pipeline.launch.plan import Component
from nemo_skills.pipeline.launch.render import Site, render_component
from nemo_skills.pipeline.launch.supervise import HELPER_GRACE_S, Process, run_job


def _process(folder: Path, name: str, script: str) -> Process:
    path = folder / f"{name}.sh"
    path.write_text(script)
    return Process(
        name=name,
        script=path,
        log=folder / "logs" / f"{name}.log",
        is_main=name == "main",
        replica=name.startswith("replica"),
    )


def _run(folder: Path, **scripts: str) -> None:
    processes = [_process(folder, name, script) for name, script in scripts.items()]
    run_job("job", processes, os.environ | {"NS_RUN_DIR": str(folder)})


def _survivors(folder: Path) -> list[int]:
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"NS_RUN_DIR={folder}".encode() in environ.read_bytes().split(b"\0"):
                found.append(int(environ.parent.name))
        except OSError:
            continue
    return found


def test_server_ends_with_the_main(weird_tmp_path: Path) -> None:
    _run(weird_tmp_path, server="exec sleep 1000", main="echo done; exit 0")
    assert (weird_tmp_path / "logs" / "main.log").read_text() == "done\n"
    assert _survivors(weird_tmp_path) == []


def test_exit_code_of_the_main_is_the_jobs(weird_tmp_path: Path) -> None:
    with pytest.raises(JobFailedError) as failure:
        _run(weird_tmp_path, server="exec sleep 1000", main="exit 37")
    assert failure.value.exit_code == 37
    assert _survivors(weird_tmp_path) == []


def test_dead_server_ends_the_job_and_shows_its_last_words(weird_tmp_path: Path) -> None:
    with pytest.raises(JobFailedError, match="out of memory, sadly") as failure:
        _run(weird_tmp_path, server="echo out of memory, sadly; exit 0", main="exec sleep 1000")
    assert failure.value.exit_code == 1
    assert _survivors(weird_tmp_path) == []


def test_a_job_goes_on_while_one_replica_lives(
    weird_tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _run(weird_tmp_path, replica0="exit 3", replica1="exec sleep 1000", replica2="exit 0", main="sleep 1")
    assert "replica0 ended with exit code 3" in caplog.text
    assert _survivors(weird_tmp_path) == []


def test_the_last_replica_ends_the_job(weird_tmp_path: Path) -> None:
    with pytest.raises(JobFailedError, match="goodbye") as failure:
        _run(weird_tmp_path, replica0="exit 0", replica1="sleep 1; echo goodbye", main="exec sleep 1000")
    assert failure.value.exit_code == 1
    assert _survivors(weird_tmp_path) == []


def test_what_is_no_replica_ends_the_job_as_ever(weird_tmp_path: Path) -> None:
    with pytest.raises(JobFailedError, match="sandbox ended"):
        _run(weird_tmp_path, replica0="exec sleep 1000", sandbox="exit 0", main="exec sleep 1000")
    assert _survivors(weird_tmp_path) == []


def test_daemons_that_leave_their_group_are_ended_too(weird_tmp_path: Path) -> None:
    daemon = f"setsid {sys.executable} -c 'import signal,time; time.sleep(1000)' & disown; sleep 1000"
    _run(weird_tmp_path, server=daemon, main="sleep 0.5")
    assert _survivors(weird_tmp_path) == []


def test_a_server_that_ignores_sigterm_is_killed_soon_after_the_main(weird_tmp_path: Path) -> None:
    started = time.monotonic()
    _run(weird_tmp_path, server="trap '' TERM; sleep 1000; sleep 1000", main="sleep 0.5")
    assert HELPER_GRACE_S < time.monotonic() - started < HELPER_GRACE_S + 3
    assert _survivors(weird_tmp_path) == []


def test_terminal_codes_and_overwritten_bars_stay_out_of_the_log(weird_tmp_path: Path) -> None:
    _run(weird_tmp_path, main=r"printf '\033[31mred\033[0m\n10%%\r50%%\r100%%\nlast'")
    assert (weird_tmp_path / "logs" / "main.log").read_bytes() == b"red\n100%\nlast"


_PROGRAM = """
import os, sys
from pathlib import Path
from nemo_skills.pipeline.launch.supervise import Process, run_job
folder = Path(sys.argv[1])
processes = [
    Process(name=n, script=folder / f"{n}.sh", log=folder / f"{n}.log", is_main=n == "main")
    for n in ("server", "main")
]
try:
    clean_up = ["bash", "-c", 'sleep 1; touch "$0"', str(folder / "cleaned")]
    run_job("job", processes, os.environ | {"NS_RUN_DIR": str(folder)}, clean_up=clean_up)
except KeyboardInterrupt:
    sys.exit(130)
"""


def _start_program(folder: Path, main: str) -> "subprocess.Popen[bytes]":
    for name, script in {"server": "exec sleep 1000", "main": main}.items():
        (folder / f"{name}.sh").write_text(script)
    program = subprocess.Popen([sys.executable, "-c", _PROGRAM, str(folder)])
    # the main's background sleep makes three processes, or more while prefixes are still being executed
    deadline = time.monotonic() + 20
    while len(_survivors(folder)) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(_survivors(folder)) >= 3
    return program


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_signals_leave_no_process_behind(weird_tmp_path: Path, signum: int, code: int) -> None:
    program = _start_program(weird_tmp_path, "trap '' INT; sleep 1000 & wait; sleep 1000")
    program.send_signal(signum)
    assert program.wait(timeout=30) == code
    if signum == signal.SIGKILL:
        # nobody is left to clean up; what is promised is that the components themselves get SIGTERM
        time.sleep(1)
        for pid in (left := _survivors(weird_tmp_path)):
            os.kill(pid, signal.SIGKILL)
        assert len(left) <= 1
    else:
        assert _survivors(weird_tmp_path) == []
        assert (weird_tmp_path / "cleaned").exists()


@pytest.mark.parametrize(("first", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_impatient_signals_kill_at_once_and_skip_no_clean_up(
    weird_tmp_path: Path, first: int, code: int
) -> None:
    program = _start_program(weird_tmp_path, "trap '' INT TERM; sleep 1000 & while true; do sleep 1; done")
    started = time.monotonic()
    program.send_signal(first)
    time.sleep(0.3)
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
        program.send_signal(signum)
        time.sleep(0.2)
    assert program.wait(timeout=30) == code
    assert time.monotonic() - started < 8
    assert _survivors(weird_tmp_path) == []
    assert (weird_tmp_path / "cleaned").exists()


def test_one_signal_that_arrives_twice_is_no_impatience(weird_tmp_path: Path) -> None:
    save = "trap 'sleep 1; touch saved; exit' TERM; sleep 1000 & while true; do sleep 0.1; done"
    program = _start_program(weird_tmp_path, f"cd {shlex.quote(str(weird_tmp_path))}; {save}")
    for _ in range(2):
        program.send_signal(signal.SIGTERM)
        time.sleep(0.05)
    assert program.wait(timeout=30) == 143
    assert (weird_tmp_path / "saved").exists()


def test_ctrl_c_during_the_clean_up_of_a_finished_job_still_counts(weird_tmp_path: Path) -> None:
    scripts = {"server": "trap '' TERM; touch ready; while true; do sleep 1; done"}
    scripts["main"] = "until [ -e ready ]; do sleep 0.1; done; touch ended"
    for name, script in scripts.items():
        (weird_tmp_path / f"{name}.sh").write_text(script)
    program = subprocess.Popen([sys.executable, "-c", _PROGRAM, str(weird_tmp_path)], cwd=weird_tmp_path)
    while not (weird_tmp_path / "ended").exists():
        assert program.poll() is None
        time.sleep(0.05)
    time.sleep(0.7)
    program.send_signal(signal.SIGINT)
    assert program.wait(timeout=30) == 130
    assert _survivors(weird_tmp_path) == []


def test_first_commands_get_signals_too_and_independent_ones_do_not_stop_each_other(tmp_path: Path) -> None:
    site = Site(interpreter=sys.executable, code_dir="/nowhere")
    commands = tuple(
        ("bash", "-c", f"echo {i} >> {tmp_path}/ran; exit {code}") for i, code in enumerate([0, 3, 5])
    )
    for independent, ran in ((True, "0\n1\n2\n"), (False, "0\n1\n")):
        (tmp_path / "ran").unlink(missing_ok=True)
        component = Component(
            name="main",
            commands=commands,
            role="r",
            independent=independent,
            after=(("touch", f"{tmp_path}/after"),),
        )
        done = subprocess.run(["bash", "-c", render_component(component, site)])
        assert done.returncode == 3
        assert (tmp_path / "ran").read_text() == ran
        assert not (tmp_path / "after").exists()
    waiting = (
        sys.executable,
        "-c",
        f"import time; open({str(tmp_path / 'started')!r}, 'w'); time.sleep(600)",
    )
    for independent in (True, False):
        component = Component(name="main", commands=(waiting, ("true",)), role="r", independent=independent)
        program = subprocess.Popen(["bash", "-c", render_component(component, site)])
        while not (tmp_path / "started").exists():
            time.sleep(0.02)
        program.terminate()
        assert program.wait(timeout=10) == 143
        (tmp_path / "started").unlink()


def test_a_bar_without_line_breaks_costs_no_memory(tmp_path: Path) -> None:
    _run(tmp_path, main="for i in {1..20000}; do printf '\\r%s%%' $i; done; echo")
    assert (tmp_path / "logs" / "main.log").read_bytes() == b"20000%\n"


def test_signals_ignored_from_the_start_stay_ignored(weird_tmp_path: Path) -> None:
    (weird_tmp_path / "server.sh").write_text("exec sleep 1000")
    (weird_tmp_path / "main.sh").write_text("sleep 2")
    program = subprocess.Popen(["nohup", sys.executable, "-c", _PROGRAM, str(weird_tmp_path)])
    time.sleep(1)
    program.send_signal(signal.SIGHUP)
    assert program.wait(timeout=20) == 0
