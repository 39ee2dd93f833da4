"""Typed, frozen cluster configs: parsed once from YAML, every mistake named with its file and key."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from nemo_skills.core.errors import UserError, did_you_mean
from nemo_skills.pipeline.cluster.mounts import Mount, parse_mount

EXECUTORS = ("none", "local", "slurm")
CONTAINER_RUNTIMES = ("pyxis", "none")
CONTAINER_KINDS = ("python", "venv", "dockerfile", "sqsh", "image")


@dataclass(frozen=True, kw_only=True)
class Container:
    """Where the processes of one role run.

    `kind` is `python` (the interpreter running `ns`, or `python3` on a cluster), `venv` (a virtual
    environment), `dockerfile` (an image built on demand), `sqsh` (an image file) or `image`.
    """

    kind: str
    ref: str = ""

    @classmethod
    def parse(cls, text: str) -> "Container":
        """Read `python`, `venv:path`, `dockerfile:path`, a path ending in `.sqsh`, or an image reference."""
        if text == "python":
            return cls(kind="python")
        for kind in ("venv", "dockerfile"):
            if text.startswith(f"{kind}:"):
                ref = text.removeprefix(f"{kind}:")
                if not ref:
                    raise ValueError(f"'{text}' names no path")
                return cls(kind=kind, ref=ref)
        return cls(kind="sqsh" if text.endswith(".sqsh") else "image", ref=text)


@dataclass(frozen=True, kw_only=True)
class SshTunnel:
    """How to reach the login node of a cluster."""

    host: str
    user: str
    job_dir: str
    identity: str | None = None
    port: int | None = None


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """One place where jobs can run. Times are Slurm's `[days-]hours:minutes:seconds`."""

    name: str = "none"
    """Name the config was found by; shown in messages."""
    path: str | None = None
    """File that it was read from."""
    executor: str = "none"
    """`none`: processes of this machine; `local`: the Docker engine of this machine; `slurm`."""
    containers: Mapping[str, Container] = field(default_factory=dict)
    """Container role (`nemo-skills`, `vllm`, `sandbox`, …) to where it runs."""
    mounts: tuple[Mount, ...] = ()
    """Host folders visible inside containers."""
    env_vars: tuple[str, ...] = ()
    """Variables passed to jobs: `NAME` is taken from the environment, `NAME=value` is given here."""
    required_env_vars: tuple[str, ...] = ()
    """Variables that must be set in the environment before anything is submitted."""
    account: str | None = None
    """Slurm account to charge."""
    partition: str | None = None
    """Slurm partition for jobs that ask for GPUs, and for all jobs where `cpu_partition` is absent."""
    cpu_partition: str | None = None
    """Slurm partition for jobs that ask for no GPU."""
    qos: str | None = None
    """Slurm quality of service."""
    job_dir: str | None = None
    """Folder on the cluster for experiment metadata and packaged code."""
    ssh_tunnel: SshTunnel | None = None
    """Set when jobs are submitted from another machine; without it `sbatch` runs here."""
    job_name_prefix: str = ""
    """Put before every Slurm job name."""
    timeouts: Mapping[str, str] = field(default_factory=dict)
    """Partition to its time limit."""
    default_timeout: str | None = None
    """Time limit of partitions that `timeouts` does not name."""
    dependency_type: str = "afterok"
    """How a job depends on those it runs after."""
    container_runtime: str = "pyxis"
    """`pyxis`, or `none` on clusters whose jobs run without containers."""
    sbatch_options: Mapping[str, str] = field(default_factory=dict)
    """Further sbatch options, such as `{constraint: h100, reservation: team}`."""
    mail_user: str | None = None
    """Address that Slurm writes to."""
    mail_type: str | None = None
    """Events that Slurm writes about, such as `FAIL`."""
    check_mounts: bool = False
    """Whether mount sources are checked before anything is submitted; `--check_mounted_paths` sets it."""

    @property
    def uses_containers(self) -> bool:
        """Whether processes of this cluster run inside containers."""
        return self.executor == "local" or (self.executor == "slurm" and self.container_runtime == "pyxis")

    def container(self, role: str) -> Container:
        """Return where `role` runs.

        Raises:
            UserError: no container is configured for the role, or it cannot run under this executor.
        """
        container = self.containers.get(role)
        if container is None:
            if not self.uses_containers:
                return Container(kind="python")
            known = ", ".join(sorted(self.containers)) or "none"
            raise UserError(
                f"cluster config '{self.name}': no container for role '{role}' (configured: {known})."
                + did_you_mean(role, self.containers)
            )
        if not self.uses_containers and container.kind not in ("python", "venv"):
            raise UserError(
                f"cluster config '{self.name}': containers.{role} is '{container.ref}', but jobs run here"
                " without containers; use 'python' or 'venv:/path/to/environment'"
            )
        return container


def load_cluster_config(cluster: str | None, config_dir: str | None = None) -> ClusterConfig:
    """Find and parse the config that `--cluster` names.

    `NEMO_SKILLS_CONFIG` (a path) stands in for an absent `cluster`; with neither, jobs are processes of this
    machine. A name is looked up in `config_dir`, `NEMO_SKILLS_CONFIG_DIR` and `./cluster_configs`.

    Raises:
        UserError: there is no such config, or it is malformed.
    """
    wanted = cluster or os.environ.get("NEMO_SKILLS_CONFIG")
    if not wanted:
        return ClusterConfig()
    if wanted.endswith((".yaml", ".yml")) or os.sep in wanted:
        path = Path(wanted).expanduser()
        if not path.is_file():
            raise UserError(f"cluster config {path} does not exist")
        return parse_cluster_config(path)
    folders = [
        Path(f) for f in (config_dir, os.environ.get("NEMO_SKILLS_CONFIG_DIR"), "cluster_configs") if f
    ]
    for folder in folders:
        for suffix in (".yaml", ".yml"):
            path = folder / f"{wanted}{suffix}"
            if path.is_file():
                return parse_cluster_config(path)
    if wanted == "none":
        return ClusterConfig()
    found = sorted({p.stem for folder in folders if folder.is_dir() for p in folder.glob("*.y*ml")})
    places = ", ".join(map(str, folders))
    raise UserError(
        f"no cluster config '{wanted}' in {places}.{did_you_mean(wanted, found)}"
        f" Found: {', '.join(found) or 'none'}. 'ns setup' writes one."
    )


def parse_cluster_config(path: Path) -> ClusterConfig:
    """Parse one YAML file.

    Raises:
        UserError: names the file, the key and what is wrong with it; all problems at once.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as err:
        raise UserError(f"{path}: {err}") from err
    except yaml.YAMLError as err:
        mark = getattr(err, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line}: not valid YAML: {getattr(err, 'problem', err)}") from err
    if not isinstance(raw, dict):
        raise UserError(f"{path}: expected keys and values, found {type(raw).__name__}")
    values: dict[str, Any] = {"name": path.stem, "path": str(path.absolute())}
    problems = []
    for key, value in raw.items():
        if key not in _CONVERTERS:
            problems.append(f"unknown key '{key}'.{did_you_mean(str(key), _CONVERTERS)}")
        elif value is not None:
            try:
                values[key] = _CONVERTERS[key](value)
            except (ValueError, UserError) as err:
                problems.append(f"{key}: {err}")
    if "executor" not in raw:
        problems.append(f"executor is missing; one of {', '.join(EXECUTORS)}")
    if not problems:
        config = ClusterConfig(**values)
        problems = _inconsistencies(config)
    if problems:
        raise UserError("\n".join(f"{path}: {p}" for p in problems))
    return config


def _inconsistencies(config: ClusterConfig) -> list[str]:
    """Return what is missing for the executor chosen."""
    problems = []
    if config.executor == "slurm" and not (config.job_dir or config.ssh_tunnel):
        problems.append("executor slurm needs job_dir (or ssh_tunnel.job_dir)")
    return problems


def _text(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"expected text, found {value!r}")
    return str(value)


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError(f"expected a list, found {value!r}")
    return tuple(map(_text, value))


def _text_map(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise ValueError(f"expected keys and values, found {value!r}")
    return {str(k): _text(v) for k, v in value.items()}


def _one_of(choices: tuple[str, ...]) -> Callable[[object], str]:
    def convert(value: object) -> str:
        text = "none" if value is None else _text(value)
        if text not in choices:
            raise ValueError(f"'{text}' is not one of {', '.join(choices)}.{did_you_mean(text, choices)}")
        return text

    return convert


def _containers(value: object) -> dict[str, Container]:
    return {role: Container.parse(ref) for role, ref in _text_map(value).items()}


def _mounts(value: object) -> tuple[Mount, ...]:
    return tuple(map(parse_mount, _texts(value)))


def _duration(value: object) -> str:
    # YAML 1.1 reads an unquoted 04:00:00 as the number 14400 (base 60)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value // 3600:02d}:{value // 60 % 60:02d}:{value % 60:02d}"
    return _text(value)


def _durations(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise ValueError(f"expected partition: time limit, found {value!r}")
    return {str(k): _duration(v) for k, v in value.items()}


def _ssh_tunnel(value: object) -> SshTunnel:
    given = _text_map(value)
    known = [f.name for f in dataclasses.fields(SshTunnel)]
    for key in given:
        if key not in known:
            raise ValueError(f"unknown key '{key}'.{did_you_mean(key, known)}")
    missing = [k for k in ("host", "user", "job_dir") if k not in given]
    if missing:
        raise ValueError(f"missing {', '.join(missing)}")
    port = given.get("port")
    if port is not None and not port.isdigit():
        raise ValueError(f"port: expected a number, found '{port}'")
    return SshTunnel(
        host=given["host"],
        user=given["user"],
        job_dir=given["job_dir"],
        identity=given.get("identity"),
        port=int(port) if port else None,
    )


_CONVERTERS: Mapping[str, Callable[[Any], Any]] = {
    "executor": _one_of(EXECUTORS),
    "containers": _containers,
    "mounts": _mounts,
    "env_vars": _texts,
    "required_env_vars": _texts,
    "account": _text,
    "partition": _text,
    "cpu_partition": _text,
    "qos": _text,
    "job_dir": _text,
    "ssh_tunnel": _ssh_tunnel,
    "job_name_prefix": _text,
    "timeouts": _durations,
    "default_timeout": _duration,
    "dependency_type": _text,
    "container_runtime": _one_of(CONTAINER_RUNTIMES),
    "sbatch_options": _text_map,
    "mail_user": _text,
    "mail_type": _text,
}
