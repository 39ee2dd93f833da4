"""`ns run_cmd`, `start_server`, `status`, `logs` and `cancel` on this machine and in its Docker engine."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from nemo_skills.pipeline import cli
from tests.integration import places
from tests.integration.places import Place
from tests.integration.processes import processes_naming
from tests.services.process import wait_until

SLEEPER = "sleep 98765.4"


@pytest.fixture
def here(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    with places.place("none", request, tmp_path, monkeypatch) as found:
        yield found


@pytest.fixture(params=["none", "docker"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    with places.place(request.param, request, tmp_path, monkeypatch) as found:
        yield found


def sleepers() -> list[int]:
    return [pid for pid, line in processes_naming(SLEEPER).items() if line.startswith("sleep")]


def states(*names: str) -> list[str]:
    return [one.state.state for one in cli.status(expnames=names, format="json")]


def wait_state(state: str, name: str = "run_cmd") -> None:
    def reached() -> bool:
        return bool(list(Path(os.environ["NEMORUN_HOME"]).glob(f"ns_records/{name}/*.json"))) and (
            states(name)[-1] == state
        )

    wait_until(f"{name} is {state}", reached, 60)


def logged(place: Place, capfdbinary: pytest.CaptureFixture[bytes], *words: str) -> str:
    capfdbinary.readouterr()
    assert place.ns("logs", *words) == 0
    return capfdbinary.readouterr().out.decode()


def test_the_exit_code_is_the_commands(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    assert place.run_cmd("echo out; echo err >&2; exit 7") == 7
    out, err = capfd.readouterr()
    assert {"out", "err"} <= set(out.splitlines())
    assert "main ended with exit code 7" in err
    (found,) = cli.status(expnames="run_cmd", format="json")
    assert (found.state.state, found.state.exit_code) == ("FAILED", 7)
    # the two streams of a container may overtake each other
    assert sorted(Path(found.job.log).read_text().splitlines()) == ["err", "out"]


def test_before_and_after(place: Place, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    hooks = ["--preprocess_cmd=echo 'be  fore' > /tmp/$$; cat /tmp/$$", "--postprocess_cmd=echo after"]
    assert place.run_cmd(*hooks, "echo", "the command") == 0
    assert logged(place, capfdbinary) == "be  fore\nthe command\nafter\n"
    assert place.run_cmd(*hooks, "false", expname="fails") == 1
    assert logged(place, capfdbinary, "fails") == "be  fore\n"


def test_code_and_python(here: Place, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    Path("script.py").write_text("import sys, nemo_skills; print(sys.executable, sys.argv[1:])")
    assert here.run_cmd("python", "/nemo_run/code/script.py", "++a=[b]") == 0
    assert here.run_cmd("python script.py ++a=[b]") == 0
    # packaged code has nemo_skills, so a folder without it must seem to
    assert here.run_cmd("test -e /nemo_run/code/nemo_skills/__init__.py -a -e /nemo_run/code/script.py") == 0
    line = f"{sys.executable} ['++a=[b]']\n"
    assert logged(here, capfdbinary) == line * 2


def test_a_server_beside_a_command(here: Place, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    ask = (
        "import os, urllib.request as u; print(u.urlopen(os.environ['NS_SERVER_ADDRESS'] + '/models').read())"
    )
    words = ["--server_type=stub", "--model=the-model", "python", "-c", ask]
    assert here.run_cmd(*words) == 0
    assert "the-model" in logged(here, capfdbinary)
    assert "stub listens on" in logged(here, capfdbinary, "--component=server")


def test_a_server_that_ends_ends_the_command(here: Place, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["--server_type=stub", "--model=m", "--server_args=--no-such-flag", *SLEEPER.split()]
    assert here.run_cmd(*words) == 1
    assert "unrecognized arguments: --no-such-flag" in capfd.readouterr().out
    assert sleepers() == []


def test_logs_are_followed_until_the_end(place: Place, tmp_path: Path) -> None:
    line = "printf 'one\\ntw'; until [[ -e go ]]; do sleep 0.1; done; printf 'o\\n\\xff end'"
    line = line.replace("go", "/workspace/go" if place.name == "docker" else str(tmp_path / "go"))
    running = place.start("run_cmd", *place.cluster, line)
    wait_state("RUNNING")
    following = place.start("logs", "run_cmd", "--follow")
    assert following.stdout is not None
    assert following.stdout.readline() == "one\n"
    (tmp_path / "go").touch()
    assert following.stdout.read().encode("utf-8", "surrogateescape") == b"two\n\xff end\n"
    assert following.wait(20) == 0
    assert running.wait(20) == 0
    following.communicate()
    running.communicate()


def test_the_last_lines_of_a_log(here: Place, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert here.run_cmd("seq", "1", "2000") == 0
    assert logged(here, capfdbinary).split() == [str(n) for n in range(1501, 2001)]
    assert logged(here, capfdbinary, "--lines=3").split() == ["1998", "1999", "2000"]
    assert logged(here, capfdbinary, "--lines=0").split() == [str(n) for n in range(1, 2001)]
    assert here.ns("logs", "--job=run_cdm") == 2
    assert "Did you mean 'run_cmd'?" in capfdbinary.readouterr().err.decode()
    assert here.ns("logs", "--component=srever") == 2
    assert "There are: main" in capfdbinary.readouterr().err.decode()


def test_logs_of_several_experiments_are_named(
    here: Place, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert here.run_cmd("echo 1", expname="a") == here.run_cmd("echo 2", expname="b") == 0
    home = os.environ["NEMORUN_HOME"]
    assert logged(here, capfdbinary, "a", "b") == (
        f"==> {home}/ns_logs/a/a-main.log <==\n1\n==> {home}/ns_logs/b/b-main.log <==\n2\n"
    )


def test_cancel_ends_what_runs(place: Place) -> None:
    running = place.start("run_cmd", *place.cluster, f"trap 'echo saved; exit 3' TERM; {SLEEPER} & wait")
    wait_state("RUNNING")
    wait_until("the command runs", lambda: sleepers() != [])
    (ended,) = cli.cancel(expnames="run_cmd")
    assert ended.state.state == "CANCELLED"
    assert running.wait(1) != 0
    running.communicate()
    assert sleepers() == []
    assert Path(ended.job.log).read_text() == "saved\n"
    assert cli.cancel(expnames="run_cmd") == []


def test_after_ns_was_killed_its_experiment_is_lost_and_cancel_clears_up(here: Place) -> None:
    # nothing but SIGKILL ends it
    running = here.start("run_cmd", f"trap '' TERM; while true; do {SLEEPER}; done")
    wait_state("RUNNING")
    wait_until("the command runs", lambda: sleepers() != [])
    running.kill()
    running.communicate()
    assert states("run_cmd") == ["LOST"]
    cli.cancel(expnames="run_cmd")
    assert sleepers() == []
    assert cli.cancel(expnames="run_cmd") == []


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_start_server_until_somebody_ends_it(here: Place, signum: int) -> None:
    running = here.start("start_server", "--server_type=stub", "--model=m", "--expname=serve")
    address = address_of(running)
    with urllib.request.urlopen(f"{address}/models") as answer:
        assert json.load(answer)["data"][0]["id"] == "m"
    assert states("serve") == ["RUNNING"]
    running.send_signal(signum)
    assert running.wait(15) in (130, 143)
    running.communicate()
    assert states("serve") == ["CANCELLED"]
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"{address}/models")


def test_start_server_says_why_it_ended(here: Place, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["--server_type=stub", "--model=m", "--server_args=--no-such-flag"]
    assert here.ns("start_server", *words) == 2
    out, err = capfd.readouterr()
    assert "no-such-flag" in out
    assert "server ended with exit code 2" in err
    assert here.ns("start_server", "--server_type=openai", "--model=m", "--server_address=h:1") == 2
    assert "runs already" in capfd.readouterr().err


def address_of(running: subprocess.Popen[str]) -> str:
    """Read the output of start_server up to the address."""
    assert running.stdout is not None
    for line in running.stdout:
        if found := re.match(r"the server is ready: (\S+)", line):
            return found[1]
    raise AssertionError(running.communicate())
