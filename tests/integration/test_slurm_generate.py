"""`ns generate` on a real Slurm cluster: from its login node, over SSH, and in containers."""

import pytest

from nemo_skills.examples.tiny_model import build
from tests.conftest import vllm_python
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


def with_a_real_server(user: SlurmUser, server_type: str, **options: str) -> None:
    """Answer rows with a tiny model, which is served in the job."""
    build(user.workspace / "mo del")
    write_rows(user.workspace / "in.jsonl", 3)
    options = {"server_type": server_type, "model": user.path("mo del")} | options
    assert user.generate("++inference.tokens_to_generate=8", **options) == 0
    assert user.wait(timeout_s=420) == {"generate": "COMPLETED"}
    rows = read_rows(user.workspace / "out put/generation/output.jsonl")
    assert [row["id"] for row in rows] == [0, 1, 2]
    assert all(0 < row["num_generated_tokens"] <= 8 for row in rows)


@pytest.mark.service("hf")
@pytest.mark.parametrize(
    "user", [pytest.param(SSH, marks=pytest.mark.service("ssh")), CONTAINER], indirect=True
)
def test_transformers_server(user: SlurmUser) -> None:
    with_a_real_server(user, "hf")


@pytest.mark.service("vllm")
@pytest.mark.parametrize("user", [BARE], indirect=True)
def test_vllm_server_in_an_environment_of_its_own(user: SlurmUser) -> None:
    user.settings["containers"] |= {"vllm": f"venv:{vllm_python().parents[1]}"}
    with_a_real_server(user, "vllm", server_args="--max-model-len=512 --enforce-eager")


@pytest.mark.parametrize("user", [BARE, CONTAINER], indirect=True)
def test_files_of_the_repository(user: SlurmUser, capsys: pytest.CaptureFixture[str]) -> None:
    """The input and a tool lie in the user's repository, which jobs find under /nemo_run/code."""
    source = write_rows(user.repository / "data.jsonl", 2)
    options = {"input_file": "/nemo_run/code/data.jsonl", "preprocess_cmd": "python3 /nemo_run/code/tool.py"}
    user.commit("data.jsonl", source.read_text())
    (user.repository / "tool.py").write_text("print('changed')\n")
    assert user.generate(**options) == 2
    assert "tool.py" in capsys.readouterr().err
    user.git("checkout", "--quiet", "tool.py")
    assert user.generate(**options) == 0
    assert user.wait() == {"generate": "COMPLETED"}
    assert [row["id"] for row in read_rows(user.workspace / "out put/generation/output.jsonl")] == [0, 1]
    log = user.workspace / "out put/generation-logs/generate-main.log"
    assert log.read_text().startswith("the tool of the user\n")


@pytest.mark.parametrize("user", [BARE], indirect=True)
def test_code_is_uploaded_once_and_can_be_used_again(user: SlurmUser) -> None:
    write_rows(user.workspace / "in.jsonl", 1)
    for name in ("one", "two"):
        assert user.generate(expname=name, output_dir=user.path(name), reuse_code="false") == 0
    (code,) = (user.job_dir / "code").iterdir()
    user.commit("more.py", "x = 1\n")
    assert user.generate(expname="old", output_dir=user.path("old"), reuse_code_exp="one") == 0
    assert user.record("old").code_dir == str(code)
    assert user.generate(expname="new", output_dir=user.path("new"), reuse_code="false") == 0
    assert len(list((user.job_dir / "code").iterdir())) == 2
    for name in ("one", "two", "old", "new"):
        assert user.wait(name) == {name: "COMPLETED"}


@pytest.mark.parametrize("user", [BARE, CONTAINER], indirect=True)
def test_mistakes_are_told_before_anything_is_sent(
    user: SlurmUser, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(user.workspace / "in.jsonl", 1)
    inside = user.settings["container_runtime"] == "pyxis"
    assert user.generate(output_dir="out") == 2
    assert "must be absolute" in capsys.readouterr().err
    assert user.generate(log_dir=user.path("back\\slash")) == 2
    assert "choose a folder without backslash" in capsys.readouterr().err
    assert user.generate(expname="a/b") == 2
    assert "--expname=a/b" in capsys.readouterr().err
    assert user.generate(config=user.config(job_dir="jobs")) == 2
    assert "job_dir 'jobs' must be absolute" in capsys.readouterr().err
    if inside:
        assert user.generate(output_dir="/elsewhere/out") == 2
        assert "'/elsewhere/out/generation/output.jsonl' is not mounted" in capsys.readouterr().err
        mounts = [*user.settings["mounts"], f"{user.folder}/a,b:/ab"]
        assert user.generate(config=user.config(mounts=mounts)) == 2
        assert "holds a comma" in capsys.readouterr().err
    else:
        assert user.generate(config=user.config(containers={"nemo-skills": "venv:envs/x"})) == 2
        assert "full path, not 'envs/x'" in capsys.readouterr().err
    assert not user.job_dir.exists()


@pytest.mark.parametrize("user", [CONTAINER], indirect=True)
def test_python_settings_of_the_login_shell_stay_outside_of_containers(
    user: SlurmUser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/no/such")
    monkeypatch.setenv("VIRTUAL_ENV", "/no/such")
    write_rows(user.workspace / "in.jsonl", 1)
    assert user.generate(preprocess_cmd="echo [$PYTHONPATH] [$VIRTUAL_ENV]") == 0
    assert user.wait() == {"generate": "COMPLETED"}
    log = user.workspace / "out put/generation-logs/generate-main.log"
    assert log.read_text().splitlines()[0] == "[/nemo_run/code] []"


@pytest.mark.parametrize("options", [{"server_nodes": 2}, {"server_replicas": 2}], ids=["nodes", "replicas"])
@pytest.mark.parametrize("user", [BARE], indirect=True)
def test_servers_that_are_several_processes(user: SlurmUser, options: dict[str, int]) -> None:
    write_rows(user.workspace / "in.jsonl", 4)
    assert user.generate(**options) == 0
    assert user.wait() == {"generate": "COMPLETED"}
    assert len(read_rows(user.workspace / "out put/generation/output.jsonl")) == 4
    logs = user.workspace / "out put/generation-logs"
    said = "".join(path.read_text() for path in logs.glob("generate-server*.log"))
    assert said.count("starts on port") == 2


@pytest.mark.parametrize("user", [CONTAINER], indirect=True)
def test_checked_mounts(user: SlurmUser, capsys: pytest.CaptureFixture[str]) -> None:
    """Unmounted paths are mounted and folders for outputs made, but nothing else that is missing."""
    write_rows(user.folder / "elsewhere" / "in.jsonl", 2)
    options = {
        "input_file": user.folder / "elsewhere/in.jsonl",
        "output_dir": user.folder / "new/out",
        "log_dir": user.folder / "new logs",
        "check_mounted_paths": "true",
    }
    wrong = user.config(mounts=[*user.settings["mounts"], "/no/such:/data"])
    assert user.generate(config=wrong, **options) == 2
    assert "mounted folders do not exist on this machine: /no/such" in capsys.readouterr().err
    assert not (user.folder / "new").exists()
    assert user.generate(config=user.config(), **options | {"input_file": user.folder / "none.jsonl"}) == 2
    assert "do not exist on this machine: " + str(user.folder / "none.jsonl") in capsys.readouterr().err
    assert user.queued() == []
    assert user.generate(config=user.config(), **options) == 0
    assert user.wait() == {"generate": "COMPLETED"}
    assert len(read_rows(user.folder / "new/out/generation/output.jsonl")) == 2
    assert (user.folder / "new logs/generate-main.log").exists()
