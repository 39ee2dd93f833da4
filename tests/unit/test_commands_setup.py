"""`ns setup`: the questions, the file, and what is made of a cluster's answers."""

import contextlib
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from nemo_skills.core.errors import UserError
from nemo_skills.pipeline import cli
from nemo_skills.pipeline.cluster.config import ClusterConfig, Container, parse_cluster_config
from nemo_skills.pipeline.cluster.mounts import Mount
from nemo_skills.pipeline.launch.verify import read_facts, verify
from nemo_skills.pipeline.options import SetupOptions
from nemo_skills.pipeline.setup import Discovery, Interview, read_discovery, write_config

SLURM = ClusterConfig(name="s", executor="slurm", job_dir="/jobs", partition="batch")
FACTS = [
    *("job_dir\tok", "free\t99999999", "partition\tbatch|up", "partition\tcpu|up", "partition\told|down"),
    *("accepted batch\tok", "accounting\taccounting_storage/slurmdbd", "runtime\tpyxis"),
]


def values(**options: Any) -> dict[str, object]:
    return Interview(SetupOptions(**options), interactive=False).values()


def test_options_become_a_config(tmp_path: Path) -> None:
    found = values(
        name="mine",
        executor="slurm",
        ssh_host="login",
        ssh_user="me",
        ssh_identity="~/.ssh/key",
        ssh_port=222,
        job_dir="/jobs/a b",
        account="acct",
        slurm_partition="batch",
        slurm_cpu_partition="cpu",
        default_timeout="04:00:00",
        container_runtime="pyxis",
        containers=("nemo-skills=image:1", "vllm=/x.sqsh"),
        mounts=("/data:/workspace",),
        env_vars=("HF_TOKEN",),
    )
    path = write_config(tmp_path / "new", str(found.pop("name")), found, overwrite=False)
    config = parse_cluster_config(path)
    assert path.name == "mine.yaml"
    assert config.ssh_tunnel is not None
    assert (config.ssh_tunnel.host, config.ssh_tunnel.port) == ("login", 222)
    assert (config.ssh_tunnel.user, config.ssh_tunnel.identity) == ("me", "~/.ssh/key")
    assert config.ssh_tunnel.job_dir == "/jobs/a b"
    assert (config.account, config.partition, config.cpu_partition) == ("acct", "batch", "cpu")
    assert config.default_timeout == "04:00:00"
    assert config.containers["vllm"] == Container(kind="sqsh", ref="/x.sqsh")
    assert config.mounts == (Mount("/data", "/workspace"),)
    assert config.env_vars == ("HF_TOKEN",)


def test_few_options_suffice() -> None:
    assert values(executor="local") == {"name": "local", "executor": "local"}
    assert values(executor="slurm", job_dir="/j", container_runtime="none") == {
        "name": "slurm",
        "executor": "slurm",
        "job_dir": "/j",
        "container_runtime": "none",
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "missing: --executor"),
        ({"executor": "slurm"}, "missing: --job_dir"),
        ({"executor": "slurm", "ssh_host": "h"}, "missing: --job_dir"),
        ({"executor": "local", "containers": ("image",)}, "'image' is not role=reference"),
    ],
)
def test_what_nobody_can_be_asked_for(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        values(**options)


def test_a_config_that_is_there_or_wrong_is_not_written(tmp_path: Path) -> None:
    good: dict[str, object] = {"executor": "local"}
    path = write_config(tmp_path, "a", good, overwrite=False)
    text = path.read_text()
    with pytest.raises(UserError, match="exists already"):
        write_config(tmp_path, "a", {"executor": "none"}, overwrite=False)
    with pytest.raises(UserError, match="mounts"):
        write_config(tmp_path, "a", {"executor": "local", "mounts": ["nonsense"]}, overwrite=True)
    with pytest.raises(UserError, match="--name=a/b"):
        write_config(tmp_path, "a/b", good, overwrite=True)
    assert path.read_text() == text
    write_config(tmp_path, "a", {"executor": "none"}, overwrite=True)
    assert yaml.safe_load(path.read_text()) == {"executor": "none"}
    assert [file.name for file in tmp_path.iterdir()] == ["a.yaml"]


def test_questions_in_a_terminal(tmp_path: Path) -> None:
    answers = ["local", "", "nemo-skills=image", "-", "-"]
    argv = [sys.executable, "-m", "nemo_skills.pipeline.cli", "setup", f"--config_dir={tmp_path / 'c'}"]
    controller, terminal = pty.openpty()
    env = {**os.environ, "DOCKER_HOST": f"unix://{tmp_path}/no-engine", "HF_TOKEN": "x"}
    with subprocess.Popen(
        argv, stdin=terminal, stdout=terminal, stderr=terminal, env=env, cwd=tmp_path
    ) as running:
        os.close(terminal)
        os.write(controller, "".join(f"{answer}\n" for answer in answers).encode())
        shown = b""
        with contextlib.suppress(OSError):  # how a terminal ends
            while part := os.read(controller, 4096):
                shown += part
        assert running.wait(60) == 1
    os.close(controller)
    text = shown.decode()
    assert "Where do jobs run: local (Docker on this machine) or slurm [slurm]: " in text
    assert "Name of the config [local]: " in text
    assert "FAILED  Docker engine" in text
    config = parse_cluster_config(tmp_path / "c" / "local.yaml")
    assert config.containers == {"nemo-skills": Container(kind="image", ref="image")}
    assert config.env_vars == ()


def test_suggestions() -> None:
    answer = "partition|batch*\npartition|cpu\npartition|batch*\nruntime|pyxis\naccount|a\naccount|b\n"
    assert read_discovery(answer) == Discovery(
        partitions=("batch", "cpu"), default_partition="batch", accounts=("a", "b"), has_pyxis=True
    )
    assert read_discovery("") == Discovery(has_pyxis=False)


# --- checks


def problems(config: ClusterConfig, facts: list[str]) -> dict[str, str]:
    return {check.name: check.problem for check in read_facts(config, "\n".join(facts)) if not check.ok}


def changed(**values: Any) -> ClusterConfig:
    return ClusterConfig(
        **{"name": "s", "executor": "slurm", "job_dir": "/jobs", "partition": "batch", **values}
    )


@pytest.mark.parametrize(
    ("config", "facts", "name", "problem"),
    [
        (SLURM, ["job_dir\tmkdir: Permission denied", *FACTS[2:]], "job_dir /jobs", "Permission denied"),
        (SLURM, ["job_dir\tok", "free\t1000", *FACTS[2:]], "job_dir /jobs", "0 MB of free space"),
        (SLURM, ["job_dir\tok", "controller\tUnable to contact"], "Slurm's controller", "Unable to contact"),
        (
            changed(partition="bach"),
            FACTS,
            "partition bach",
            "Did you mean 'batch'? There are: batch, cpu, old",
        ),
        (changed(cpu_partition="old"), FACTS, "partition old", "it is down"),
        (changed(timeouts={"gpu": "1:00"}), FACTS, "partition gpu", "there is none"),
        (
            changed(account="x"),
            [*FACTS, "accepted cpu\tallocation failure: Invalid account or account/partition combination"],
            *("a job in partition cpu would be accepted", "account 'x'; 'sacctmgr show assoc"),
        ),
        (SLURM, [fact for fact in FACTS if "pyxis" not in fact], "container_runtime pyxis", "no Pyxis"),
        (
            changed(mounts=(Mount("/no", "/workspace"),)),
            [*FACTS, "absent\t/no"],
            *("mount /no:/workspace", "/no does not exist"),
        ),
        (
            changed(containers={"nemo-skills": Container(kind="sqsh", ref="/x.sqsh")}),
            [*FACTS, "absent\t/x.sqsh"],
            *("containers.nemo-skills", "/x.sqsh does not exist"),
        ),
        (
            changed(container_runtime="none", containers={"nemo-skills": Container(kind="venv", ref="/e")}),
            [*FACTS, "absent\t/e/bin/python"],
            *("containers.nemo-skills", "/e/bin/python does not exist"),
        ),
        (
            changed(container_runtime="none", containers={"vllm": Container(kind="image", ref="i")}),
            FACTS,
            *("containers.vllm", "without containers"),
        ),
    ],
)
def test_what_is_wrong_is_named(config: ClusterConfig, facts: list[str], name: str, problem: str) -> None:
    found = problems(config, facts)
    assert list(found) == [name]
    assert problem in found[name]


def test_nothing_is_wrong() -> None:
    assert problems(SLURM, FACTS) == {}
    assert problems(changed(container_runtime="none"), [f for f in FACTS if "pyxis" not in f]) == {}


def test_the_environment_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NS_SET", "1")
    monkeypatch.delenv("NS_UNSET", raising=False)
    config = ClusterConfig(
        executor="none", required_env_vars=("NS_SET", "NS_UNSET"), env_vars=("NS_UNSET2", "A=b")
    )
    checks = {check.name: check for check in verify(config)}
    assert checks["variable NS_SET"].ok
    assert "not set" in checks["variable NS_UNSET"].problem
    assert checks["variable NS_UNSET2"].ok
    assert "variable A" not in checks


def test_containers_need_the_role_of_mains() -> None:
    config = ClusterConfig(name="d", executor="local")
    assert "nearly every job" in next(iter(verify(config))).problem


def test_verify_a_missing_config(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["setup", "--verify", f"--cluster={tmp_path}/x.yaml"]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_verify_here(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = tmp_path / "here.yaml"
    config.write_text("executor: none\ncontainers: {vllm: 'venv:/no/such'}\n")
    assert cli.main(["setup", "--verify", f"--cluster={config}"]) == 1
    out, err = capsys.readouterr()
    assert "FAILED  containers.vllm: /no/such/bin/python does not exist" in out
    assert "1 of 2 checks failed" in err
    assert err.rstrip().endswith(f"ns setup --verify --cluster={config}")
