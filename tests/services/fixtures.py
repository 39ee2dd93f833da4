"""Session-wide fixtures of real services; where one is absent, its tests are skipped, or failed if required.

With pytest-xdist every worker starts its own: folders and ports are chosen freely, only the cache is shared.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.services import docker, rootfs, slurm, sshd
from tests.services.docker import DockerEngine
from tests.services.process import missing_programs
from tests.services.require import require
from tests.services.slurm import SlurmCluster
from tests.services.sshd import SshServer


def _require_programs(service: str, programs: Sequence[str]) -> None:
    missing = missing_programs(programs)
    reason = f"{', '.join(missing)} not installed (run tests/services/install.sh)"
    require(service, not missing, reason)
    require(service, os.geteuid() == 0, "the tests do not run as root")


@pytest.fixture(scope="session")
def service_root() -> Iterator[Path]:
    """A short folder for the services' files: Unix sockets lie in it, whose paths have 107 bytes at most."""
    folder = Path(tempfile.mkdtemp(prefix="ns-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def container_rootfs() -> Path:
    """A root folder with Debian and Python, for the container plugin and Docker; treat it as read-only."""
    reason = rootfs.unavailable()
    require("rootfs", reason is None, reason or "")
    return rootfs.build_rootfs()


@pytest.fixture(scope="session")
def slurm_cluster(service_root: Path) -> Iterator[SlurmCluster]:
    """A cluster with accounting; its image `ns-test-base:latest` is the root folder if that is at hand."""
    _require_programs("slurm", slurm.PROGRAMS)
    with SlurmCluster(service_root / "slurm") as cluster:
        if rootfs.unavailable() is None:
            cluster.add_image(docker.BASE_IMAGE, rootfs.build_rootfs())
        yield cluster


@pytest.fixture(scope="session")
def slurm_cluster_noacct(service_root: Path) -> Iterator[SlurmCluster]:
    """A cluster without accounting: `sacct` fails there, any account is accepted."""
    _require_programs("slurm", slurm.PROGRAMS)
    with SlurmCluster(service_root / "slurm-noacct", accounting=False) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def docker_engine(service_root: Path) -> Iterator[DockerEngine]:
    """An engine that has the base image."""
    _require_programs("docker", docker.PROGRAMS)
    reason = rootfs.unavailable()
    require("docker", reason is None, reason or "")
    with DockerEngine(service_root / "docker") as engine:
        yield engine


@pytest.fixture(scope="session")
def ssh_server(service_root: Path, slurm_cluster: SlurmCluster) -> Iterator[SshServer]:
    """The cluster's login node: an sshd whose sessions have `SLURM_CONF`."""
    _require_programs("ssh", sshd.PROGRAMS)
    with SshServer(service_root / "ssh", {"SLURM_CONF": str(slurm_cluster.conf)}) as server:
        yield server
