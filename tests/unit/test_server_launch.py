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


# Says where it meets the others, and stays until the file `end-<node rank>` holds its exit code
TOGETHER = """
import os, sys, time
me, folder, *told = sys.argv[1:]
with open(f"{folder}/told-{me}.tmp", "w") as file:
    file.write(" ".join([*told, os.environ["ADDRESS"]]))
os.rename(file.name, file.name[:-4])
while not os.path.exists(f"{folder}/end-{me}"):
    time.sleep(0.02)
sys.exit(int(open(f"{folder}/end-{me}").read()))
"""


class Team:
    """The launchers of one server's processes, the later ones first."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder = folder
        script = folder / "together.py"
        script.write_text(TOGETHER)
        words = ["{node_rank}", str(folder), "{head}", "{head_port}"]
        worker = json.dumps(["python", str(script), *words, "worker"])
        command = [sys.executable, str(LAUNCHER), "--tasks", str(size), "--worker", worker]
        command += ["--advertise", "auto", "--env", "ADDRESS={address}", "--", "python", str(script), *words]
        self.launchers = []
        for rank in reversed(range(size)):
            env = os.environ | {"NS_RUN_DIR": str(folder), "SLURM_PROCID": str(rank)}
            log = (folder / f"log-{rank}").open("wb")
            self.launchers.insert(0, subprocess.Popen(command, env=env, stdout=log, stderr=log))

    def told(self, rank: int) -> list[str]:
        until((self.folder / f"told-{rank}").exists)
        return (self.folder / f"told-{rank}").read_text().split()

    def finish(self, rank: int, code: int) -> int:
        (self.folder / "end.tmp").write_text(str(code))
        (self.folder / "end.tmp").rename(self.folder / f"end-{rank}")
        return self.launchers[rank].wait(timeout=20)


@pytest.fixture
def team(weird_tmp_path: Path) -> Iterator[Team]:
    found = Team(weird_tmp_path, 3)
    yield found
    for launcher in found.launchers:
        launcher.terminate()
        launcher.wait(timeout=20)


def test_the_processes_of_a_server_meet_at_the_first(team: Team) -> None:
    head, port, address = team.told(0)
    assert head == address == launch.advertised_host("auto")
    assert int(port) in launch.PORTS
    for rank in (1, 2):
        assert team.told(rank) == [head, port, "worker", address]
    [published] = read_published(team.folder)
    assert published.host == head
    assert published.port != int(port)
    with pytest.raises(SystemExit, match="no free port"):  # nobody else gets it meanwhile
        launch.Reservation([other for other in launch.PORTS if other != int(port)])


@pytest.mark.parametrize(("rank", "code"), [(0, 0), (0, 3), (2, 0), (2, 3)])
def test_no_process_of_a_server_ends_well_alone(team: Team, rank: int, code: int) -> None:
    team.told(rank)
    assert team.finish(rank, code) == (code or 1)
    [published] = read_published(team.folder)
    assert published.exited == (rank == 0)


def test_processes_that_wait_for_the_first_end_when_asked(weird_tmp_path: Path) -> None:
    env = os.environ | {"NS_RUN_DIR": str(weird_tmp_path), "SLURM_PROCID": "1"}
    command = [sys.executable, str(LAUNCHER), "--tasks", "2", "--", "touch", str(weird_tmp_path / "ran")]
    launcher = subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL)
    time.sleep(1)
    assert launcher.poll() is None
    launcher.terminate()
    assert launcher.wait(timeout=5) == 1
    assert not (weird_tmp_path / "ran").exists()
    assert read_published(weird_tmp_path) == []


@pytest.mark.parametrize(
    ("index", "visible", "own"),
    [
        (0, None, "0,1"),
        (2, None, "4,5"),
        (1, "7,3,5,1,0,2", "5,1"),
        (2, "GPU-a,GPU-b,GPU-c,GPU-d,GPU-e,GPU-f,GPU-g", "GPU-e,GPU-f"),
        (1, "0,1", None),
    ],
)
def test_replicas_share_the_gpus_of_a_node(index: int, visible: str | None, own: str | None) -> None:
    options = launch.parse(["--count", "3", "--index", str(index), "--gpus", "2", "--", "serve"])
    assert launch.own_gpus(options, visible) == own


@pytest.mark.parametrize("visible", ["", "0,1,2,3,4"])
def test_too_few_gpus_for_all_replicas(visible: str) -> None:
    options = launch.parse(["--count", "3", "--gpus", "2", "--", "serve"])
    with pytest.raises(SystemExit, match="need 6 GPUs"):
        launch.own_gpus(options, visible)


def test_a_server_alone_keeps_what_it_sees() -> None:
    assert launch.own_gpus(launch.parse(["--gpus", "2", "--", "serve"]), "0,1,2,3") is None
    assert launch.own_gpus(launch.parse(["--count", "3", "--", "serve"]), "0,1,2,3") is None


def test_the_share_arrives(start: Callable[..., Launched], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    code = "import os; print('mine:', os.environ['CUDA_VISIBLE_DEVICES'])"
    one = start(code, options=("--count", "2", "--index", "1", "--gpus", "2"))
    assert one.process.wait(timeout=10) == 0
    assert "mine: 6,7" in one.log.read_text()
