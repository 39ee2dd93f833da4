"""The launcher with real processes: ports, published states, and nothing left behind."""

import ast
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest

from nemo_skills.inference.server import announce, family, launch
from nemo_skills.inference.server.published import read_published

LAUNCHER = Path(launch.__file__)

# Listens, and starts a worker in its session and one that left it; both note their ids
SERVER = """
import http.server, os, signal, subprocess, sys, time
port, folder, stubborn = int(sys.argv[1]), sys.argv[2], "stubborn" in sys.argv
code = "import signal, time\\n"
if stubborn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    code += "signal.signal(signal.SIGTERM, signal.SIG_IGN)\\n"
code += "time.sleep(600)"
workers = [subprocess.Popen([sys.executable, "-c", code], start_new_session=new) for new in (False, True)]
httpd = http.server.HTTPServer(("127.0.0.1", port), http.server.BaseHTTPRequestHandler)
time.sleep(0.2)  # the workers ignore signals by now
with open(folder + "/pids.tmp", "w") as file:
    file.write(" ".join(str(pid) for pid in (os.getpid(), *(w.pid for w in workers))))
os.rename(folder + "/pids.tmp", folder + "/pids")
httpd.serve_forever()
"""


class Launched:
    def __init__(self, folder: Path, code: str, *args: str, options: tuple[str, ...] = ()) -> None:
        self.folder = folder
        self.log = folder / "server.log"
        script = folder / "server.py"
        script.write_text(code)
        env = os.environ | {"NS_RUN_DIR": str(folder), "NS_SERVER_LOG": str(self.log)}
        command = [sys.executable, str(LAUNCHER), "--name", "fake", *options, "--", "python"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, str(script), "{port}", str(folder), *args],
                env=env,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def entry(self) -> dict[str, Any]:
        [path] = self.folder.glob("server-*.json")
        return json.loads(path.read_text())

    def pids(self) -> list[int]:
        until((self.folder / "pids").exists)
        return [int(pid) for pid in (self.folder / "pids").read_text().split()]

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(timeout=20)


def until(condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.02)


def alive(pids: list[int]) -> list[int]:
    found = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                found.append(pid)
    return found


@pytest.fixture
def start(weird_tmp_path: Path) -> Iterator[Callable[..., Launched]]:
    started: list[Launched] = []

    def run(code: str = SERVER, *args: str, options: tuple[str, ...] = ()) -> Launched:
        started.append(Launched(weird_tmp_path, code, *args, options=options))
        return started[-1]

    yield run
    for one in started:
        one.end()


@pytest.mark.parametrize("module", [launch, announce, family])
def test_needs_only_an_old_python_and_its_standard_library(module: ModuleType) -> None:
    tree = ast.parse(Path(str(module.__file__)).read_text(), feature_version=(3, 8))
    imported = {
        name
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    own = {f"nemo_skills.inference.server.{name}" for name in ("announce", "family")}
    assert {name.split(".")[0] for name in imported - own} <= set(sys.stdlib_module_names)


def test_runs_by_its_path_where_the_package_is_not_installed(weird_tmp_path: Path) -> None:
    folder = weird_tmp_path / "code/nemo_skills/inference/server"
    folder.mkdir(parents=True)
    for module in (launch, announce, family):
        shutil.copy(str(module.__file__), folder)
    command = [sys.executable, "-I", "-S", str(folder / "launch.py"), "--", "python", "-c", "print('ran')"]
    assert subprocess.run(command, capture_output=True, text=True, timeout=20).stdout == "ran\n"


def test_publishes_where_the_server_is_and_when_it_ends(start: Callable[..., Launched]) -> None:
    one = start(options=("--index", "3", "--count", "4", "--ready-path", "/v1/models", "--model", "m"))
    pids = one.pids()
    entry = one.entry()
    assert entry["state"] == "starting"
    assert (entry["index"], entry["count"], entry["model"]) == (3, 4, "m")
    assert (entry["ready_path"], entry["pid"], entry["log"]) == ("/v1/models", pids[0], str(one.log))
    assert entry["port"] in launch.PORTS
    socket.create_connection((entry["host"], entry["port"])).close()
    one.process.send_signal(signal.SIGTERM)
    assert one.process.wait(timeout=10) == 128 + signal.SIGTERM
    [published] = read_published(one.folder)
    assert published.exited
    assert published.exit_code == 128 + signal.SIGTERM
    assert alive(pids) == []


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_stubborn_family_is_killed_after_the_grace_time(
    start: Callable[..., Launched], signum: signal.Signals
) -> None:
    one = start(SERVER, "stubborn", options=("--grace", "0.5"))
    pids = one.pids()
    one.process.send_signal(signum)
    assert one.process.wait(timeout=10) == 128 + signal.SIGKILL
    until(lambda: not alive(pids), seconds=2)


@pytest.mark.parametrize("manner", ["polite", "stubborn"])
def test_a_killed_launcher_leaves_nothing_behind(start: Callable[..., Launched], manner: str) -> None:
    one = start(SERVER, manner)
    pids = one.pids()
    guards = psutil.Process(one.process.pid).children()
    one.process.kill()
    one.process.wait()
    until(lambda: not alive([*pids, *(guard.pid for guard in guards)]), seconds=8)
    assert one.entry()["state"] == "exited"


def test_the_family_ends_with_the_launchers_parent(weird_tmp_path: Path) -> None:
    script = weird_tmp_path / "server.py"
    script.write_text(SERVER)
    shell = 'cd "$1" && "$2" "$3" -- python server.py "{port}" . & wait'
    parent = subprocess.Popen(
        ["sh", "-c", shell, "sh", str(weird_tmp_path), sys.executable, str(LAUNCHER)],
        env=os.environ | {"NS_RUN_DIR": str(weird_tmp_path)},
        stderr=subprocess.DEVNULL,
    )
    pids_file = weird_tmp_path / "pids"
    until(pids_file.exists)
    family = psutil.Process(parent.pid).children(recursive=True)
    parent.kill()
    parent.wait()
    until(lambda: not alive([process.pid for process in family]), seconds=15)


def test_a_server_that_ends_takes_its_workers_along(start: Callable[..., Launched]) -> None:
    one = start()
    pids = one.pids()
    os.kill(pids[0], signal.SIGKILL)
    assert one.process.wait(timeout=10) == 128 + signal.SIGKILL
    assert alive(pids) == []


def test_another_port_when_a_stranger_took_the_first(start: Callable[..., Launched]) -> None:
    code = """
import os, socket, sys, time
port, folder = int(sys.argv[1]), sys.argv[2]
first = not os.path.exists(folder + "/first")
with open(folder + ("/first.tmp" if first else "/second.tmp"), "w") as file:
    file.write(str(port))
os.rename(file.name, file.name[:-4])
while first and not os.path.exists(folder + "/taken"):
    time.sleep(0.02)
if first:
    sys.exit(1)
time.sleep(600)
"""
    one = start(code)
    first, second = one.folder / "first", one.folder / "second"
    until(first.exists)
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", int(first.read_text())))
        stranger.listen()
        (one.folder / "taken").touch()
        until(second.exists)
    assert second.read_text() != first.read_text()
    assert one.entry()["port"] == int(second.read_text())
    assert one.entry()["state"] == "starting"


def test_another_port_when_the_server_says_so(start: Callable[..., Launched]) -> None:
    code = """
import sys
sys.exit("OSError: [Errno 98] error while attempting to bind: Address already in use")
"""
    one = start(code)
    assert one.process.wait(timeout=30) == 1
    starts = [line for line in one.log.read_text().splitlines() if "starts on port" in line]
    assert len(starts) == 5
    assert len({line.split(",")[0] for line in starts}) == 5


def test_a_server_that_fails_by_itself_is_not_started_again(start: Callable[..., Launched]) -> None:
    one = start("import sys; sys.exit('CUDA out of memory')")
    assert one.process.wait(timeout=10) == 1
    assert one.log.read_text().count("starts on port") == 1
    [published] = read_published(one.folder)
    assert "CUDA out of memory" in published.obituary()


def test_a_missing_program(weird_tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, str(LAUNCHER), "--", "no-such-server", "{port}"],
        env=os.environ | {"NS_RUN_DIR": str(weird_tmp_path)},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 127
    assert "cannot start no-such-server" in ended.stderr
    assert read_published(weird_tmp_path)[0].exit_code == 127


def test_a_run_folder_that_is_gone(weird_tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, str(LAUNCHER), "--", "sleep", "60"],
        env=os.environ | {"NS_RUN_DIR": str(weird_tmp_path / "gone")},
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert "No such file" in ended.stderr


def test_defaults_for_the_servers_environment(start: Callable[..., Launched]) -> None:
    one = start(
        "import os; print(os.environ['PATH'] != 'x', os.environ['NS_TEST_NEW'])",
        options=("--env", "PATH=x", "--env", "NS_TEST_NEW=a=b c"),
    )
    assert one.process.wait(timeout=10) == 0
    assert "True a=b c" in one.log.read_text()


def test_ports_are_reserved_probed_and_let_go() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert launch.port_taken(taken.getsockname()[1])
    reserved = launch.Reservation()
    others = [launch.Reservation() for _ in range(50)]
    assert reserved.port not in {other.port for other in others}
    all_but_one = [port for port in launch.PORTS if port != reserved.port]
    with pytest.raises(SystemExit, match="no free port"):
        launch.Reservation(all_but_one)
    reserved.release()
    assert launch.Reservation(all_but_one).port == reserved.port


@pytest.mark.parametrize(
    ("args", "host"),
    [([], "127.0.0.1"), (["--advertise", "node7"], "0.0.0.0"), (["--bind", "10.0.0.1"], "10.0.0.1")],
)
def test_placeholders(args: list[str], host: str) -> None:
    options = launch.parse([*args, "--", "serve", "--at={host}:{port}", "--", "{x}"])
    values = launch.placeholders(options, 123, "here", announce.Meeting("there", 45))
    assert launch.command(options, values) == ["serve", f"--at={host}:123", "--", "{x}"]


def test_an_address_for_other_nodes() -> None:
    address = launch.advertised_host("auto")
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((address, 0))  # it is one of this machine's
    assert launch.advertised_host("node7") == "node7"
