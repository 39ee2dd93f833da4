"""A login node without a cluster: quicker to have than `ssh_server`, which starts Slurm behind it."""

import os
from collections.abc import Iterator

import pytest

from nemo_skills.pipeline.cluster.ssh import SshTunnel
from tests.services import sshd
from tests.services.process import missing_programs
from tests.services.require import require
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
