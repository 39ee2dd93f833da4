"""Secrets on a Slurm cluster: they are in one private file while a job needs them, and nowhere else."""

import contextlib
import hashlib
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.generation import write_rows
from tests.integration.slurm_jobs import BARE, CONTAINER, SSH, SlurmUser
from tests.services.process import wait_until
from tests.services.sshd import SshServer

pytestmark = pytest.mark.service("slurm")

BY_NAME, BY_VALUE, UNNAMED, ODD = (f"canary-{kind}-'\"$5`" for kind in ("name", "value", "unnamed", "odd"))
CANARIES = [b"canary-name", b"canary-value", b"canary-unnamed", b"canary-odd"]


def files_with_canaries(*folders: Path) -> list[Path]:
    """Return the files below some folders in which a canary is to be read."""
    found = []
    for folder in folders:
        for path in folder.rglob("*"):
            with contextlib.suppress(OSError):
                if stat.S_ISREG(path.lstat().st_mode) and any(c in path.read_bytes() for c in CANARIES):
                    found.append(path)
    return found


@contextmanager
def watched_processes() -> Iterator[set[str]]:
    """Collect the command lines with canaries that come up meanwhile."""
    seen: set[str] = set()
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            for entry in os.scandir("/proc"):
                if entry.name.isdigit():
                    with contextlib.suppress(OSError):
                        line = Path(entry.path, "cmdline").read_bytes()
                        if any(canary in line for canary in CANARIES):
                            seen.add(line.decode(errors="replace"))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("place", [BARE, pytest.param(SSH, marks=pytest.mark.service("ssh")), CONTAINER])
def test_canaries(
    slurm_user: SlurmUser, place: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    user, cluster = slurm_user, slurm_user.cluster
    server = None
    if place == SSH:
        server = request.getfixturevalue("ssh_server")
        assert isinstance(server, SshServer)
        monkeypatch.setenv("PATH", server.env["PATH"])
    if place == CONTAINER:
        request.getfixturevalue("container_rootfs")
    user.use(place, server=server)
    monkeypatch.setenv("HF_TOKEN", BY_NAME)
    monkeypatch.setenv("DATABASE_PASSWORD", UNNAMED)  # nobody asked for it: it must not travel
    monkeypatch.setenv("MY_ODD_ONE", ODD)
    write_rows(user.workspace / "in.jsonl", 3)
    config = user.config(env_vars=[f"MY_API_KEY={BY_VALUE}", "MY_ODD_ONE", "PLAIN=visible"])
    seen, go = user.workspace / "seen", user.workspace / "go"
    script = (
        f"echo $HF_TOKEN $MY_API_KEY $MY_ODD_ONE $PLAIN [$DATABASE_PASSWORD] | md5sum >{user.quoted('seen')};"
        f" until [[ -e {user.quoted('go')} ]]; do sleep 0.1; done"
    )
    spool = [cluster.root / name for name in ("state", "spool-node1", "spool-node2")]
    with watched_processes() as processes:
        options = {"config": config, "preprocess_cmd": script, "num_chunks": 2, "not_exclusive": "true"}
        assert user.generate(**options) == 0
        wait_until("the main runs", seen.exists)
        wait_until("the second main runs", lambda: user.state(user.ids()["generate-chunk1"]) == "RUNNING")
        while_running = files_with_canaries(user.folder, *spool, Path(os.environ["NEMORUN_HOME"]))
        shown = cluster.command("scontrol", "--details", "show", "job") + cluster.command(
            "scontrol", "write", "batch_script", str(user.ids()["generate-chunk0"]), "-"
        )
        go.touch()
        assert set(user.wait().values()) == {"COMPLETED"}
    config.unlink()  # holds one of them by the user's will
    assert not processes
    assert not any(canary.decode() in shown for canary in CANARIES)
    secret_files = [path for path in while_running if path != config]
    assert {path.name for path in secret_files} == {"secrets.env"}
    assert len(secret_files) == 3
    # and then they are gone
    assert files_with_canaries(user.folder, *spool, Path(os.environ["NEMORUN_HOME"])) == []
    arrived = f"{BY_NAME} {BY_VALUE} {ODD} visible []\n"
    assert seen.read_text().split()[0] == hashlib.md5(arrived.encode()).hexdigest()


def test_the_file_is_private(slurm_user: SlurmUser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", BY_NAME)
    before = os.umask(0)
    try:
        write_rows(slurm_user.workspace / "in.jsonl", 1)
        assert slurm_user.generate(config=slurm_user.config(sbatch_options={"hold": ""})) == 0
    finally:
        os.umask(before)
    (path,) = slurm_user.job_dir.rglob("secrets.env")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(slurm_user.exp_dir("generate").stat().st_mode) == 0o700
