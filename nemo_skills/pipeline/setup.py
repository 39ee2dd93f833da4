"""`ns setup`: writes a cluster config and checks it against the cluster."""

import getpass
import os
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import yaml

from nemo_skills.core.errors import UserError
from nemo_skills.core.log import get_logger
from nemo_skills.pipeline.cluster.config import (
    ClusterConfig,
    SshTunnel,
    load_cluster_config,
    parse_cluster_config,
)
from nemo_skills.pipeline.launch.slurm import open_tunnel
from nemo_skills.pipeline.launch.slurm_remote import on_login_node
from nemo_skills.pipeline.launch.verify import MAIN_ROLE, Check, verify
from nemo_skills.pipeline.options import SetupOptions, WhereOptions
from nemo_skills.pipeline.wrapper import wrapper

LOG = get_logger(__name__)

_HEADER = "# Written by ns setup. docs/cluster_configs.md explains these keys and names more.\n"
_DISCOVER = r"""
sinfo --noheader --format='partition|%P'
srun --help 2> /dev/null | grep -q -- --container-image && echo 'runtime|pyxis'
sacctmgr --noheader --parsable2 show assoc user="$(id -un)" format=account 2> /dev/null |
  sort -u | sed 's/^/account|/'
true
"""

Values = dict[str, object]


@dataclass(frozen=True, kw_only=True)
class Discovery:
    """What a cluster says of itself."""

    partitions: tuple[str, ...] = ()
    default_partition: str = ""
    accounts: tuple[str, ...] = ()
    has_pyxis: bool = True


@wrapper()
def setup(where: WhereOptions, own: SetupOptions) -> list[Check]:
    """Write a cluster config and check it: connection, folders, partitions, containers, Docker engine.

    In a terminal it asks for what the options do not say. --verify --cluster=NAME checks a config that is
    there already. The config goes into --config_dir, $NEMO_SKILLS_CONFIG_DIR or ./cluster_configs.
    """
    if own.verify:
        return _check(load_cluster_config(where.cluster, where.config_dir))
    values = Interview(own, interactive=sys.stdin.isatty()).values()
    folder = Path(where.config_dir or os.environ.get("NEMO_SKILLS_CONFIG_DIR") or "cluster_configs")
    path = write_config(folder, str(values.pop("name")), values, overwrite=own.overwrite)
    print(f"wrote {path}")
    return _check(parse_cluster_config(path))


class Interview:
    """Collects the values of a config, from options and from answers."""

    def __init__(self, own: SetupOptions, *, interactive: bool) -> None:
        self._own = own
        self._interactive = interactive
        self._missing: list[str] = []

    def values(self) -> Values:
        """Return the config, and the `name` it is to have.

        Raises:
            UserError: something is not given, and there is nobody to ask.
        """
        likely = "slurm" if self._interactive else ""
        executor = self._get("executor", "Where do jobs run: local (Docker on this machine) or slurm", likely)
        self._check_missing()
        if executor not in ("local", "slurm"):
            raise UserError(f"'{executor}' is neither local nor slurm")
        name = self._get("name", "Name of the config", executor)
        values: Values = {"name": name, "executor": executor}
        values |= self._slurm() if executor == "slurm" else {}
        if values.get("container_runtime") != "none":
            values |= self._containers(executor)
        if env_vars := self._list("env_vars", "Variables that jobs get from your environment", "HF_TOKEN"):
            values["env_vars"] = env_vars
        self._check_missing()
        return values

    def _check_missing(self) -> None:
        if self._missing:
            raise UserError(f"missing: {', '.join(f'--{option}' for option in self._missing)}")

    def _slurm(self) -> Values:
        own, values = self._own, Values()
        host = self._get(
            "ssh_host", "Login node to reach over ssh (empty: this machine is one)", "", need=False
        )
        if host:
            user = self._get("ssh_user", "Your name there", getpass.getuser())
            job_dir = self._get("job_dir", "Folder there for the files of jobs, seen by all nodes", "")
            tunnel: Values = {"host": host, "user": user, "job_dir": job_dir}
            identity = self._get("ssh_identity", "Private key (empty: ssh knows)", "", need=False)
            tunnel |= {"identity": identity} if identity else {}
            tunnel |= {"port": own.ssh_port} if own.ssh_port else {}
            values["ssh_tunnel"] = tunnel
        else:
            values["job_dir"] = self._get("job_dir", "Folder for the files of jobs, seen by all nodes", "")
        found = self._discover(values)
        accounts = f" ({', '.join(found.accounts)})" if found.accounts else ""
        partitions = f" ({', '.join(found.partitions)})" if found.partitions else ""
        first = found.accounts[0] if found.accounts else ""
        runtime = "pyxis" if found.has_pyxis else "none"
        asked = {
            "account": self._get("account", f"Account{accounts}", first, need=False),
            "partition": self._get(
                "slurm_partition", f"Partition{partitions}", found.default_partition, need=False
            ),
            "cpu_partition": self._get(
                "slurm_cpu_partition", "Partition for jobs without GPUs", "", need=False
            ),
            "default_timeout": self._get("default_timeout", "Time limit of jobs", "04:00:00", need=False),
            "container_runtime": self._get("container_runtime", "Containers: pyxis or none", runtime),
        }
        return values | {key: value for key, value in asked.items() if value}

    def _containers(self, executor: str) -> Values:
        here = Path("dockerfiles/Dockerfile.nemo-skills")
        default = f"{MAIN_ROLE}=dockerfile:{here}" if executor == "local" and here.is_file() else ""
        values = Values()
        containers = {}
        for item in self._list("containers", f"Images, as {MAIN_ROLE}=image,vllm=image", default):
            role, equals, reference = item.partition("=")
            if not (role and equals and reference):
                raise UserError(f"--containers: '{item}' is not role=reference")
            containers[role.strip()] = reference.strip()
        if containers:
            values["containers"] = containers
        if mounts := self._list("mounts", "Folders that containers see, as /host/folder:/workspace", ""):
            values["mounts"] = mounts
        return values

    def _discover(self, values: Values) -> Discovery:
        """Ask the cluster for what to suggest; only worth it where there is somebody to choose."""
        if not self._interactive:
            return Discovery()
        ssh = values.get("ssh_tunnel")
        config = ClusterConfig(
            executor="slurm", ssh_tunnel=SshTunnel(**ssh) if isinstance(ssh, dict) else None
        )
        try:
            return read_discovery(open_tunnel(config).run(on_login_node(_DISCOVER), timeout=60).stdout)
        except UserError as error:
            LOG.warning("nothing can be suggested: %s", error)
            return Discovery()

    def _get(self, option: str, question: str, default: str, *, need: bool = True) -> str:
        given = getattr(self._own, option)
        if given is not None:
            return str(given)
        if not self._interactive:
            if need and not default:
                self._missing.append(option)
            return default if need else ""
        while True:
            answer = ask(question, default)
            if answer or not need:
                return answer

    def _list(self, option: str, question: str, default: str) -> list[str]:
        given = getattr(self._own, option)
        if given or not self._interactive:
            return list(given)
        return [item.strip() for item in ask(question, default).split(",") if item.strip()]


def ask(question: str, default: str) -> str:
    """Ask in the terminal; an empty answer takes the default, and a dash means nothing."""
    shown = f" [{default}]" if default else ""
    answer = input(f"{question}{shown}: ").strip() or default
    return "" if answer == "-" else answer


def read_discovery(answer: str) -> Discovery:
    """Read what a cluster said of itself."""
    facts: dict[str, list[str]] = {}
    for line in answer.splitlines():
        kind, _, text = line.partition("|")
        facts.setdefault(kind, []).append(text)
    partitions = list(dict.fromkeys(facts.get("partition", ())))
    return Discovery(
        partitions=tuple(name.removesuffix("*") for name in partitions),
        default_partition=next((name[:-1] for name in partitions if name.endswith("*")), ""),
        accounts=tuple(filter(None, facts.get("account", ()))),
        has_pyxis="runtime" in facts,
    )


def write_config(folder: Path, name: str, values: Values, *, overwrite: bool) -> Path:
    """Write a config once it is known to be well-formed.

    Raises:
        UserError: it is not, or there is one of that name.
    """
    if not name or name != Path(name).name or name.startswith("."):
        raise UserError(f"--name={name}: not the name of a file")
    path = folder / f"{name}.yaml"
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists already; --overwrite replaces it, and --verify only checks it")
    text = _HEADER + yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".setup-") as scratch:
            draft = Path(scratch) / path.name
            draft.write_text(text, encoding="utf-8")
            parse_cluster_config(draft)
            draft.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    return path


def _check(cluster: ClusterConfig) -> list[Check]:
    checks = show(verify(cluster))
    failed = [check for check in checks if not check.ok]
    if failed:
        where = cluster.path or cluster.name
        raise UserError(
            f"{len(failed)} of {len(checks)} checks failed; when that is put right, check again with:"
            f" ns setup --verify --cluster={where}",
            exit_code=1,
        )
    print(f"all is well. Try it with: ns run_cmd --cluster={cluster.name} hostname")
    return checks


def show(checks: Iterable[Check]) -> list[Check]:
    """Print checks as they are made."""
    found = []
    for check in checks:
        word = "ok    " if check.ok else "FAILED"
        detail = check.note if check.ok else check.problem
        print(f"{word}  {check.name}" + (f": {detail}" if detail else ""), flush=True)
        found.append(check)
    return found
