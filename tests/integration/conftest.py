"""A login node without a cluster, quicker to have than `ssh_server`, and a user of a Docker engine."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from nemo_skills.pipeline.cluster.ssh import SshTunnel
from tests.integration.docker_jobs import DockerUser
from tests.integration.slurm_jobs import BARE, SlurmUser
from tests.services import sshd
from tests.services.docker import DockerEngine
from tests.services.process import missing_programs
from tests.services.require import require
from tests.services.slurm import SlurmCluster
from tests.services.sshd import SshServer


@pytest.fixture(scope="session")
def login(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    missing = missing_programs(sshd.PROGRAMS)
    require("ssh", not missing, f"{', '.join(missing)} not installed (run tests/services/install.sh)")
    require("ssh", os.geteuid() == 0, "the tests do not run as root")
    with SshServer(tmp_path_factory.mktemp("ssh")) as server:
        yield server


@pytest.fixture
def ssh(login: SshServer) -> Iterator[SshTunnel]:
    with SshTunnel(login.alias, config=login.config) as tunnel:
        yield tunnel


@pytest.fixture
def docker_user(
    docker_engine: DockerEngine, weird_tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[DockerUser]:
    """Someone whose jobs leave neither containers nor clients behind."""
    for name in ("DOCKER_HOST", "DOCKER_CONFIG"):
        monkeypatch.setenv(name, docker_engine.env[name])
    monkeypatch.setenv("NEMORUN_HOME", str(weird_tmp_path / "nemo run"))
    user = DockerUser(docker_engine, weird_tmp_path)
    monkeypatch.chdir(user.work_dir)
    yield user
    assert user.containers() == []
    assert user.clients() == {}


@pytest.fixture
def slurm_user(
    slurm_cluster: SlurmCluster, weird_tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[SlurmUser]:
    """Someone on the login node of a cluster without containers, who leaves no job behind."""
    monkeypatch.setenv("SLURM_CONF", slurm_cluster.env["SLURM_CONF"])
    user = SlurmUser(slurm_cluster, weird_tmp_path)
    user.use(BARE)
    monkeypatch.chdir(user.repository)
    yield user
    if queued := user.queued():
        slurm_cluster.command("scancel", *queued)
