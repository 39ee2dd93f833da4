"""Jobs in containers of the test engine, which run the Python of this environment."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from nemo_skills.pipeline.cluster.config import ClusterConfig, parse_cluster_config
from nemo_skills.pipeline.launch.plan import Component, Job, Plan
from nemo_skills.pipeline.options import JobOptions
from tests.integration.processes import processes_naming
from tests.services.docker import BASE_IMAGE, DockerEngine

NS = [sys.executable, "-m", "nemo_skills.pipeline.cli"]


def python_mounts(python: str | Path = sys.executable) -> list[str]:
    """Mounts that make a virtual environment and its interpreter work in a container, at the same paths."""
    ask = "import json, sys; print(json.dumps([sys.prefix, sys.base_prefix]))"
    done = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True)
    # the base image has the interpreter of Debian at /usr
    return [f"{path}:{path}:ro" for path in json.loads(done.stdout) if path != "/usr"]


@dataclass
class DockerUser:
    """Someone with a cluster config, a workspace and an engine."""

    engine: DockerEngine
    folder: Path
    env: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.workspace.mkdir()
        self.work_dir.mkdir()

    @property
    def workspace(self) -> Path:
        """The folder that containers see as /workspace."""
        return self.folder / "work space"

    @property
    def work_dir(self) -> Path:
        """Where commands are typed; no git repository."""
        return self.folder / "cwd"

    @property
    def experiments(self) -> Path:
        """What the executor keeps."""
        return Path(os.environ["NEMORUN_HOME"])

    def dockerfile(self, name: str, *lines: str) -> str:
        """Write a Dockerfile and return the container reference to it."""
        path = self.folder / "dockerfiles" / f"Dockerfile.{name}"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join([f"FROM {BASE_IMAGE}", *lines]) + "\n")
        return f"dockerfile:{path}"

    def python_image(self, name: str, python: str | Path = sys.executable, *lines: str) -> str:
        """A container reference to the base image with another environment's programs first in its PATH."""
        return self.dockerfile(name, f'ENV PATH="{Path(python).parent}:$PATH"', *lines)

    def write_config(self, **changes: Any) -> Path:
        """Write a cluster config; `changes` replace its values."""
        values = {
            "executor": "local",
            "containers": {"nemo-skills": self.python_image("python")},
            "mounts": [f"{self.workspace}:/workspace", *python_mounts()],
        }
        path = self.folder / "docker.yaml"
        path.write_text(yaml.safe_dump(values | changes))
        return path

    def config(self, **changes: Any) -> ClusterConfig:
        """Return a cluster config whose containers need no Python; `changes` replace its values."""
        plain = {"containers": {"nemo-skills": BASE_IMAGE}, "mounts": [f"{self.workspace}:/workspace"]}
        return parse_cluster_config(self.write_config(**plain | changes))

    def plan(self, main: str, *, expname: str = "exp", server: str | None = None, **changes: Any) -> Plan:
        """Plan one job of bash scripts; `run_after` and what `config` takes are keywords."""
        options = JobOptions(expname=expname, run_after=changes.pop("run_after", ()))
        components = [Component(name="main", commands=(("bash", "-c", main),), role="nemo-skills")]
        if server:
            components.insert(
                0, Component(name="server", commands=(("bash", "-c", server),), role="nemo-skills")
            )
        job = Job(name=expname, components=tuple(components))
        return Plan(
            expname=expname,
            cluster=self.config(**changes),
            jobs=(job,),
            log_dir="/workspace/logs",
            options=options,
        )

    def command(self, config: Path, **options: Any) -> list[str]:
        """Return `ns generate` with the stub server; `options` add to or replace its options."""
        values = {
            "cluster": config,
            "server_type": "stub",
            "model": "m",
            "input_file": "/workspace/in.jsonl",
            "output_dir": "/workspace/out put",
        } | options
        flags = [f"--{name}={value}" for name, value in values.items() if value is not None]
        return [*NS, "generate", *flags, "++prompt_config=generic/default"]

    def run(self, argv: Sequence[str], **env: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            argv,
            cwd=self.work_dir,
            env=self.environ(env),
            capture_output=True,
            text=True,
            timeout=200,
            stdin=subprocess.DEVNULL,
        )

    def start(self, argv: Sequence[str], **env: str) -> subprocess.Popen[str]:
        """Start a command; its output is in `stdout` and `stderr` of the user's folder."""
        with (self.folder / "stdout").open("w") as out, (self.folder / "stderr").open("w") as err:
            return subprocess.Popen(
                argv, cwd=self.work_dir, env=self.environ(env), stdout=out, stderr=err, text=True
            )

    def environ(self, more: Mapping[str, str]) -> dict[str, str]:
        """Return the environment that commands run in."""
        return {**os.environ, **self.env, **more}

    def clients(self) -> dict[int, str]:
        """Command lines of what waits for a container of the engine."""
        here = f"DOCKER_HOST={self.engine.host}".encode()
        found = {}
        for pid, line in processes_naming("docker run").items():
            with contextlib.suppress(OSError):
                if here in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                    found[pid] = line
        return found

    def containers(self, *, everything: bool = True) -> list[str]:
        """Names of containers, also of those that do not run."""
        return self.engine.docker("ps", *(["-a"] if everything else []), "--format={{.Names}}").split()
