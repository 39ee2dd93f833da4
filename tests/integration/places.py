"""The places where a command can run, each with its cluster config, for tests that want the same of all."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from nemo_skills.pipeline import cli
from nemo_skills.pipeline.launch import code, slurm
from tests.services.docker import BASE_IMAGE
from tests.services.slurm import SlurmCluster

NAMES = ("none", "docker", "slurm-bare", "slurm-ssh", "slurm-container")
FIXTURES = {
    "none": (),
    "docker": ("docker_engine",),
    "slurm-bare": ("slurm_cluster",),
    "slurm-ssh": ("slurm_cluster", "ssh_server"),
    "slurm-container": ("slurm_cluster", "container_rootfs"),
    "slurm-noacct": ("slurm_cluster_noacct",),
}
CLIENT_VARIABLES = {"SLURM_CONF", "DOCKER_HOST", "DOCKER_CONFIG", "HOME", "PATH"}


@dataclass(frozen=True)
class Place:
    """Somewhere to run commands."""

    name: str
    folder: Path
    """For files of the test; containers see it as /workspace."""
    cluster: tuple[str, ...]
    """The option that names the cluster."""
    started: list[subprocess.Popen[str]] = field(default_factory=list)
    """Processes that end with the test."""

    @property
    def config(self) -> str:
        """The path of its cluster config."""
        return self.cluster[0].removeprefix("--cluster=")

    def ns(self, command: str, *words: str) -> int:
        """Run a command of `ns` in this process; returns its exit code."""
        return cli.main([command, *words])

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start ns as a process of its own, its output in pipes."""
        argv = [sys.executable, "-m", "nemo_skills.pipeline.cli", *words]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        running = subprocess.Popen(argv, **pipes, text=True, errors="surrogateescape")
        self.started.append(running)
        return running

    def run_cmd(self, *words: str, expname: str = "run_cmd") -> int:
        """Run `ns run_cmd` and wait until its job has ended; returns the exit code of ns."""
        code = self.ns("run_cmd", *self.cluster, f"--expname={expname}", *words)
        self.wait(expname)
        return code

    def wait(self, expname: str = "run_cmd", timeout_s: float = 90.0) -> None:
        """Wait until the jobs of an experiment have ended."""
        deadline = time.monotonic() + timeout_s
        while any(one.active for one in cli.status(expnames=expname, format="json")):
            assert time.monotonic() < deadline, f"{expname} has not ended"
            time.sleep(0.3)


@contextmanager
def place(
    name: str, request: pytest.FixtureRequest, folder: Path, monkeypatch: pytest.MonkeyPatch, **given: Any
) -> Iterator[Place]:
    """Set this process up as a user of a place, whose services are fixtures or given."""
    services = given or {fixture: request.getfixturevalue(fixture) for fixture in FIXTURES[name]}
    work_dir = folder / "cwd"
    work_dir.mkdir()
    monkeypatch.chdir(work_dir)
    for service in services.values():
        for variable in CLIENT_VARIABLES & getattr(service, "env", {}).keys():
            monkeypatch.setenv(variable, service.env[variable])
    if name == "slurm-ssh":
        # only the login node knows the cluster
        monkeypatch.delenv("SLURM_CONF")
    values = config(name, folder, services)
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values))
    slurm._connection.cache_clear()
    code._session.clear()
    user = Place(name, folder, (f"--cluster={path}",) if name != "none" else ())
    try:
        yield user
    finally:
        for running in user.started:
            end(running)
        slurm._connection.cache_clear()
        for service in services.values():
            if isinstance(service, SlurmCluster):
                service.command(
                    "scancel", "--user=root"
                )  # jobs take whole nodes: a test that failed would block


def end(running: subprocess.Popen[str]) -> None:
    """End a process that a test has left; ns takes down what it started."""
    with running:
        running.terminate()
        try:
            running.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            running.kill()
            running.communicate()


def config(name: str, folder: Path, services: Mapping[str, Any]) -> dict[str, object]:
    """Return the values of a cluster config."""
    containers = {"nemo-skills": BASE_IMAGE}
    mounts = [f"{folder}:/workspace"]
    job_dir = str(folder / "jobs")
    if name == "none":
        return {"executor": "none"}
    if name == "docker":
        return {"executor": "local", "containers": containers, "mounts": mounts}
    common = {"executor": "slurm", "partition": "batch", "default_timeout": "00:05:00"}
    if name == "slurm-container":
        return common | {"job_dir": job_dir, "containers": containers, "mounts": mounts}
    bare = common | {"container_runtime": "none"}
    if name == "slurm-ssh":
        server = services["ssh_server"]
        tunnel = {"host": server.alias, "user": server.user, "job_dir": job_dir}
        return bare | {"ssh_tunnel": tunnel | {"identity": str(server.identity)}}
    return bare | {"job_dir": job_dir}
