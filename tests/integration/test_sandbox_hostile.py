"""Programs that mean harm are contained, and the next request works."""

import re
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from nemo_skills.code_execution.result import ExecutionResult
from tests.integration.hostile_programs import HOSTILE, Hostile, refused
from tests.integration.sandboxes import CANARY, RunningSandbox, running_sandbox

MEMORY_MB, DISK_MB = 256, 32
BOX_UIDS = 1_900_000_000


@pytest.fixture(scope="module")
def sandbox() -> Iterator[RunningSandbox]:
    options = [
        "--memory_mb",
        str(MEMORY_MB),
        "--disk_mb",
        str(DISK_MB),
        "--processes",
        "48",
        "--workers",
        "2",
    ]
    with running_sandbox(*options) as running:
        yield running


@pytest.fixture(scope="module")
def canary_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("host") / "secret.txt"
    path.write_text(CANARY)
    path.chmod(0o644)
    return path


def run(sandbox: RunningSandbox, hostile: Hostile, canary_file: Path) -> ExecutionResult:
    port = sandbox.client.address.rpartition(":")[2]
    code = hostile.code.replace("@CANARY@", str(canary_file)).replace("@PORT@", port)
    return sandbox.client.execute(code, timeout_s=hostile.timeout_s)


@pytest.mark.parametrize("name", HOSTILE)
def test_contained(sandbox: RunningSandbox, name: str, canary_file: Path) -> None:
    hostile = HOSTILE[name]
    result = run(sandbox, hostile, canary_file)
    assert re.fullmatch(hostile.status, result.status), result
    assert re.search(hostile.says, result.stdout + result.stderr), result
    assert CANARY not in result.stdout + result.stderr
    after = sandbox.client.execute("print('next')", timeout_s=20)
    assert (after.status, after.stdout) == ("completed", "next\n"), after


def test_programs_can_tell(sandbox: RunningSandbox) -> None:
    assert len(HOSTILE) >= 30
    assert "worked: [1]" in sandbox.client.execute(refused("os.listdir('/nowhere')", "os.getpid()")).stdout


def test_nothing_survives(sandbox: RunningSandbox, canary_file: Path) -> None:
    assert run(sandbox, HOSTILE["daemon"], canary_file).ok
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        family = psutil.Process(sandbox.process.pid).children(recursive=True)
        strangers = [p.pid for p in psutil.process_iter(["uids"]) if p.info["uids"].real >= BOX_UIDS]
        if len(family) == 1 and not strangers:  # the zygote
            return
        time.sleep(0.05)
    raise AssertionError((family, strangers))


def test_a_session_survives_hostile_cells_or_starts_anew(sandbox: RunningSandbox, canary_file: Path) -> None:
    client = sandbox.client
    for name in ("memory bomb", "close all files", "daemon", "kill everybody"):
        assert client.execute("kept = 7", "s").ok
        client.execute(HOSTILE[name].code, "s", timeout_s=2)
        again = client.execute("print(globals().get('kept'))", "s")
        assert again.status == "completed"
        assert again.stdout == ("None\n" if again.new_session else "7\n")
    client.close_session("s")
    assert client.execute("1", "s").new_session
    client.close_session("s")
