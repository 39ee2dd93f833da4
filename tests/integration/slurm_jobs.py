"""Someone who submits to the test cluster, from its login node or over SSH."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from nemo_skills.pipeline import cli
from nemo_skills.pipeline.cluster.config import ClusterConfig, parse_cluster_config
from nemo_skills.pipeline.launch import slurm
from nemo_skills.pipeline.launch.plan import Component, Job, Plan, chain
from nemo_skills.pipeline.launch.records import Record, history, latest
from nemo_skills.pipeline.options import JobOptions
from nemo_skills.training.metrics_log import read_metrics
from tests.integration.docker_jobs import python_mounts
from tests.services.docker import BASE_IMAGE
from tests.services.process import wait_until
from tests.services.slurm import SlurmCluster
from tests.services.sshd import SshServer

VENV = Path(sys.prefix)
FINAL = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY")
BARE, SSH, CONTAINER = "bare", "ssh", "container"


@dataclass
class SlurmUser:
    """Files, cluster configs and experiments of a user; the present process acts for them."""

    cluster: SlurmCluster
    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)
    """Values of the cluster config."""

    def __post_init__(self) -> None:
        for folder in (self.workspace, self.repository):
            folder.mkdir()
        self.git("init", "--quiet")
        self.commit("tool.py", "print('the tool of the user')\n")

    @property
    def workspace(self) -> Path:
        """Folder of inputs and outputs, which containers see as /workspace."""
        return self.folder / "work space"

    @property
    def repository(self) -> Path:
        """The git repository in which commands are typed."""
        return self.folder / "re po"

    @property
    def job_dir(self) -> Path:
        """Where experiments lie."""
        return self.folder / "jobs"

    def git(self, *words: str) -> None:
        """Run git in the repository."""
        subprocess.run(["git", *words], cwd=self.repository, check=True)

    def commit(self, name: str, text: str) -> None:
        """Add a file to the repository."""
        (self.repository / name).write_text(text)
        self.git("add", name)
        who = ("-c", "user.name=Test", "-c", "user.email=test@example.com")
        self.git(*who, "commit", "--quiet", "--message=x")

    def python_of_the_host(self) -> list[str]:
        """Mounts by which `python3` in a container is the interpreter of this environment."""
        wrapper = self.folder / "python3"
        wrapper.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        wrapper.chmod(0o755)
        return [f"{wrapper}:/usr/local/bin/python3", *python_mounts()]

    def use(self, place: str, *, server: SshServer | None = None) -> None:
        """Choose how jobs run and are submitted."""
        self.settings = {
            "executor": "slurm",
            "job_dir": str(self.job_dir),
            "default_timeout": "00:05:00",
            "container_runtime": "none",
            "containers": {"nemo-skills": f"venv:{VENV}"},
        }
        if place == SSH:
            assert server is not None
            del self.settings["job_dir"]
            self.settings["ssh_tunnel"] = {
                "host": server.host,
                "port": server.port,
                "user": server.user,
                "job_dir": str(self.job_dir),
                "identity": str(server.identity),
            }
        if place == CONTAINER:
            self.settings |= {
                "container_runtime": "pyxis",
                "containers": {"nemo-skills": BASE_IMAGE},
                "mounts": [f"{self.workspace}:/workspace", *self.python_of_the_host()],
            }

    def config(self, **changes: Any) -> Path:
        """Write the cluster config; `changes` replace its values."""
        path = self.folder / "cluster.yaml"
        path.write_text(yaml.safe_dump(self.settings | changes))
        return path

    def parsed(self, **changes: Any) -> ClusterConfig:
        """Return the cluster config."""
        return parse_cluster_config(self.config(**changes))

    def path(self, name: str) -> str:
        """Return a file of the workspace as jobs see it."""
        inside = self.settings["container_runtime"] == "pyxis"
        return f"/workspace/{name}" if inside else str(self.workspace / name)

    def quoted(self, name: str) -> str:
        """Return the same for a line of shell."""
        return shlex.quote(self.path(name))

    def generate(self, *words: str, **options: Any) -> int:
        """Run `ns generate` in this process; returns its exit code. The server is a stub."""
        return cli.main([*self.command(**options)[3:], *words])

    def command(self, *, config: Path | None = None, **options: Any) -> list[str]:
        """Return the command line of `ns generate`; `options` add to or replace its options."""
        values = {
            "cluster": config or self.config(),
            "server_type": "stub",
            "model": "m",
            "input_file": self.path("in.jsonl"),
            "output_dir": self.path("out put"),
        } | options
        flags = [f"--{name}={value}" for name, value in values.items() if value is not None]
        ns = [sys.executable, "-m", "nemo_skills.pipeline.cli"]
        return [*ns, "generate", *flags, "++prompt_config=generic/default"]

    def record(self, expname: str = "generate") -> Record:
        """Return the newest record of an experiment."""
        return latest(expname)

    def ids(self, expname: str = "generate") -> dict[str, int]:
        """Job names of an experiment to Slurm ids; the newest of several records wins."""
        return {job.name: int(job.slurm_id or 0) for record in history(expname) for job in record.jobs}

    def wait(self, expname: str = "generate", timeout_s: float = 90.0) -> dict[str, str]:
        """Wait until the jobs of an experiment have ended; returns their states."""
        ids = self.ids(expname)
        states: dict[str, str] = {}

        def ended() -> bool:
            states.update({name: self.state(job_id) for name, job_id in ids.items()})
            return all(state in FINAL for state in states.values())

        try:
            wait_until(f"{expname} has ended", ended, timeout_s)
        except Exception as error:
            raise AssertionError(f"{error}: {states}\n{self.logs()}") from None
        if set(states.values()) - {"COMPLETED"}:
            print(self.logs())  # shown where a test expected something else
        return states

    def state(self, job_id: int) -> str:
        """Return Slurm's word for a job."""
        return self.cluster.job(job_id)["JobState"]

    def warn(self, job_id: int) -> None:
        """Tell a job that its time limit is near, as Slurm does."""
        self.cluster.command("scancel", "--batch", "--signal=USR1", str(job_id))

    def trained_steps(self) -> list[int]:
        """Return the steps that a training into `out` has logged."""
        return [entry.step for entry in read_metrics(self.workspace / "out" / "training" / "metrics.jsonl")]

    def cut_short(self, expname: str, job: str) -> None:
        """Let the time limit of a training job come soon after it has begun to train."""
        before = len(self.trained_steps())
        wait_until(f"{job} trains", lambda: len(self.trained_steps()) > before + 2, 240)
        job_id = self.ids(expname)[job]
        self.warn(job_id)
        wait_until(f"{job} ends", lambda: self.state(job_id) in FINAL, 60)

    def queued(self) -> list[str]:
        """Return the ids of jobs that the queue holds of this user's experiments."""
        lines = self.cluster.command("squeue", "--noheader", "--format=%A|%Z").splitlines()
        return [line.split("|")[0] for line in lines if line.partition("|")[2].startswith(str(self.folder))]

    def exp_dir(self, expname: str = "exp") -> Path:
        """Return the folder of an experiment on the cluster."""
        return Path(self.record(expname).exp_dir or "")

    def log(self, name: str) -> str:
        """Return what a log of the experiment says."""
        return (Path(self.record_folder) / f"{name}.log").read_text()

    @property
    def record_folder(self) -> Path:
        """Where logs are."""
        return self.workspace / "logs"

    def logs(self) -> str:
        """Return the ends of all logs, for messages."""
        files = sorted(self.folder.rglob("*.log"))
        return "\n".join(f"--- {file}\n{file.read_text(errors='replace')[-2000:]}" for file in files)

    # Jobs of bash scripts, which start in no time

    def submit(
        self, *jobs: Job, expname: str = "exp", cluster: Mapping[str, Any] | None = None, **options: Any
    ) -> Record:
        """Queue jobs; `options` are those of JobOptions."""
        more = options.pop("dependent_jobs", 0)
        options.setdefault("not_exclusive", True)
        plan = Plan(
            expname=expname,
            cluster=self.parsed(**{"containers": {}, **(cluster or {})}),
            jobs=chain(jobs, more),
            log_dir=self.path("logs"),
            options=JobOptions(expname=expname, **options),
        )
        return slurm.submit(plan)


def bash(script: str, name: str = "main", **values: Any) -> Component:
    """Return a component that runs a script of bash."""
    return Component(name=name, commands=(("bash", "-c", script),), role="nemo-skills", **values)


def job(name: str, *components: Component | str, **values: Any) -> Job:
    """Return a job; a text is the script of its main."""
    made = tuple(bash(c) if isinstance(c, str) else c for c in components)
    return Job(name=name, components=made, **values)
