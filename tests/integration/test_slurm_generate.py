"""`ns generate` on a real Slurm cluster: from its login node, over SSH, and in containers."""

import pytest

from tests.integration.generation import read_rows, write_rows
from tests.integration.slurm_jobs import BARE, CONTAINER, SSH, SlurmUser
from tests.services.sshd import SshServer

pytestmark = pytest.mark.service("slurm")


@pytest.fixture(params=[BARE, pytest.param(SSH, marks=pytest.mark.service("ssh")), CONTAINER])
def user(request: pytest.FixtureRequest, slurm_user: SlurmUser, monkeypatch: pytest.MonkeyPatch) -> SlurmUser:
    server = None
    if request.param == SSH:
        server = request.getfixturevalue("ssh_server")
        assert isinstance(server, SshServer)
        monkeypatch.setenv("PATH", server.env["PATH"])
        monkeypatch.delenv("SLURM_CONF")  # only the login node knows the cluster
    if request.param == CONTAINER:
        request.getfixturevalue("container_rootfs")
    slurm_user.use(request.param, server=server)
    return slurm_user


def test_rows_logs_and_a_second_call(user: SlurmUser, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_rows(user.workspace / "in.jsonl", 5)
    assert user.generate() == 0
    logs = user.workspace / "out put/generation-logs"
    assert logs.is_dir()
    assert user.wait() == {"generate": "COMPLETED"}
    rows = read_rows(user.workspace / "out put/generation/output.jsonl")
    assert [row["id"] for row in rows] == [row["id"] for row in read_rows(source)]
    assert all(row["generation"] and row["finish_reason"] == "stop" for row in rows)
    assert f"5 rows are in {user.path('out put')}" in (logs / "generate-main.log").read_text()
    assert "stub listens on" in (logs / "generate-server.log").read_text()
    assert "job succeeded, exit code 0" in (logs / "generate-sbatch.log").read_text()

    assert user.generate() == 0
    assert "is done; --rerun_done does it again" in capsys.readouterr().err
    assert user.ids() == {"generate": int(user.record().jobs[0].slurm_id or 0)}
