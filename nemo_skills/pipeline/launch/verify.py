"""Checks a cluster config against the place that it describes: a line for each thing that jobs will need."""

import os
import shlex
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nemo_skills.core.errors import UserError, did_you_mean
from nemo_skills.pipeline.cluster.config import ClusterConfig
from nemo_skills.pipeline.cluster.ssh import SshTunnel
from nemo_skills.pipeline.cluster.tunnel import ShellTunnel, TunnelError, assignments
from nemo_skills.pipeline.launch import docker_engine
from nemo_skills.pipeline.launch.slurm import job_dir, open_tunnel
from nemo_skills.pipeline.launch.slurm_remote import NO_SLURM, on_login_node

MAIN_ROLE = "nemo-skills"
_LITTLE_KB = 2 << 20
_TIMEOUT_S = 120

# Everything in one call. sbatch --test-only asks the controller whether it would take a job, and queues none.
_LOOK = r"""
say() { local kind=$1; shift; printf '%s\t%s\n' "$kind" "${*//$'\n'/; }"; }
if said=$(mkdir -p -- "$job_dir" 2>&1 && mktemp -- "$job_dir/.ns-check-XXXXXX" 2>&1); then
  rm -f -- "$said"
  say job_dir ok
  say free "$(df -Pk -- "$job_dir" 2> /dev/null | awk 'NR == 2 { print $4 }')"
else
  say job_dir "$said"
fi
if said=$(sinfo --noheader --format='%P|%a' 2>&1); then
  while IFS='|' read -r name state; do say partition "${name%\*}|$state"; done <<< "$said"
else
  say controller "$said"
fi
for part in "${partitions[@]}"; do
  said=$(sbatch --test-only --partition="$part" "${sbatch[@]}" --nodes=1 --wrap=true 2>&1) && said=ok
  say "accepted $part" "$said"
done
((${#partitions[@]})) || {
  said=$(sbatch --test-only "${sbatch[@]}" --nodes=1 --wrap=true 2>&1) && said=ok
  say "accepted " "$said"
}
say accounting "$(scontrol show config 2> /dev/null | awk '$1 == "AccountingStorageType" { print $3 }')"
srun --help 2> /dev/null | grep -q -- --container-image && say runtime pyxis
say python "$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2> /dev/null)"
for path in "${paths[@]}"; do [[ -e $path ]] || say absent "$path"; done
true
"""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    problem: str = ""
    """What is wrong and what to do about it; empty when nothing is."""
    note: str = ""
    """What was found, where all is well."""

    @property
    def ok(self) -> bool:
        """Whether jobs can count on it."""
        return not self.problem


def verify(cluster: ClusterConfig) -> Iterator[Check]:
    """Yield one check after the other; those that cannot be made without an earlier one are left out."""
    yield from _environment(cluster)
    if cluster.uses_containers and MAIN_ROLE not in cluster.containers:
        yield Check(f"containers.{MAIN_ROLE}", "is missing: nearly every job runs in it")
    if cluster.executor == "slurm":
        yield from _slurm(cluster)
    elif cluster.executor == "local":
        yield from _docker(cluster)
    else:
        yield from _here(cluster)


def _environment(cluster: ClusterConfig) -> Iterator[Check]:
    required = [entry for entry in cluster.required_env_vars if "=" not in entry]
    for name in required:
        problem = (
            "" if os.environ.get(name) else "not set in your environment: export it before you launch jobs"
        )
        yield Check(f"variable {name}", problem)
    for name in (entry for entry in cluster.env_vars if "=" not in entry and entry not in required):
        yield Check(
            f"variable {name}", note="set" if name in os.environ else "not set, so jobs will not have it"
        )


def _here(cluster: ClusterConfig) -> Iterator[Check]:
    yield Check("python", note=sys.executable)
    for role, container in cluster.containers.items():
        if container.kind == "venv":
            python = Path(container.ref).expanduser() / "bin" / "python"
            yield Check(f"containers.{role}", "" if python.exists() else f"{python} does not exist")
        else:
            yield _without_containers(cluster, role)


def _without_containers(cluster: ClusterConfig, role: str) -> Check:
    try:
        cluster.container(role)
    except UserError as error:
        return Check(f"containers.{role}", str(error))
    return Check(f"containers.{role}")


def _docker(cluster: ClusterConfig) -> Iterator[Check]:
    try:
        docker_engine.find_engine()
    except UserError as error:
        yield Check("Docker engine", str(error))
        return
    yield Check("Docker engine")
    for role, container in cluster.containers.items():
        name = f"containers.{role}"
        if container.kind == "dockerfile":
            found = Path(container.ref).expanduser().is_file()
            yield Check(
                name, "" if found else f"{container.ref} does not exist", "is built when it is needed"
            )
        elif container.kind != "image":
            yield Check(name, "must be an image or dockerfile:path for executor local")
        else:
            here = docker_engine.call("image", "inspect", container.ref).returncode == 0
            yield Check(name, note="is here" if here else "will be pulled when it is needed")
    yield from _mounts(cluster, {m.source for m in cluster.mounts if not Path(m.source).exists()})


def _mounts(cluster: ClusterConfig, absent: set[str]) -> Iterator[Check]:
    for mount in cluster.mounts:
        problem = (
            f"{mount.source} does not exist: create it, or take it out" if mount.source in absent else ""
        )
        yield Check(f"mount {mount}", problem)


def _slurm(cluster: ClusterConfig) -> Iterator[Check]:
    tunnel = open_tunnel(cluster)
    if isinstance(tunnel, SshTunnel):
        try:
            tunnel.connect()
        except TunnelError as error:
            yield Check(f"ssh to {tunnel.where}", str(error))
            return
        yield Check(f"ssh to {tunnel.where}")
    yield from _on_login_node(cluster, tunnel)


def _on_login_node(cluster: ClusterConfig, tunnel: ShellTunnel) -> Iterator[Check]:
    paths = {mount.source for mount in cluster.mounts}
    paths |= {c.ref for c in cluster.containers.values() if c.kind == "sqsh"}
    paths |= {f"{c.ref}/bin/python" for c in cluster.containers.values() if c.kind == "venv"}
    flags = {"account": cluster.account, "qos": cluster.qos, "time": cluster.default_timeout}
    script = (
        assignments(job_dir=job_dir(cluster))
        + _array("partitions", dict.fromkeys(filter(None, (cluster.partition, cluster.cpu_partition))))
        + _array("sbatch", [f"--{name}={value}" for name, value in flags.items() if value])
        + _array("paths", sorted(paths))
        + _LOOK
    )
    try:
        done = tunnel.run(on_login_node(script), check=False, timeout=_TIMEOUT_S)
    except TunnelError as error:
        yield Check("login node", str(error))
        return
    if done.code == NO_SLURM:
        yield Check("Slurm", f"there is no sbatch on {tunnel.where}: is it a login node?")
        return
    yield from read_facts(cluster, done.stdout)


def read_facts(cluster: ClusterConfig, answer: str) -> Iterator[Check]:
    """Yield the checks of a Slurm cluster from what the script on its login node printed."""
    facts: dict[str, list[str]] = {}
    for line in answer.splitlines():
        kind, _, text = line.partition("\t")
        facts.setdefault(kind, []).append(text)
    yield _job_dir(cluster, facts)
    if "controller" in facts:
        yield Check("Slurm's controller", f"no answer: {facts['controller'][0]}")
        return
    yield from _partitions(cluster, facts)
    off = "none" in facts.get("accounting", [""])[0]
    yield Check("accounting", note="off; states of old jobs come from files" if off else "on")
    yield _runtime(cluster, has_pyxis="runtime" in facts)
    absent = set(facts.get("absent", ()))
    for role, container in cluster.containers.items():
        path = {"sqsh": container.ref, "venv": f"{container.ref}/bin/python"}.get(container.kind)
        if not cluster.uses_containers and container.kind not in ("python", "venv"):
            yield _without_containers(cluster, role)
        elif path:
            yield Check(f"containers.{role}", f"{path} does not exist there" if path in absent else "")
    if cluster.uses_containers:
        yield from _mounts(cluster, absent)


def _job_dir(cluster: ClusterConfig, facts: dict[str, list[str]]) -> Check:
    name = f"job_dir {job_dir(cluster)}"
    said = facts.get("job_dir", ["no answer"])[0]
    if said != "ok":
        return Check(name, f"cannot be written: {said}")
    free = facts.get("free", [""])[0]
    if free.isdigit() and int(free) < _LITTLE_KB:
        return Check(name, f"has only {int(free) >> 10} MB of free space: choose another, or tidy up")
    return Check(name, note="all nodes must see it")


def _partitions(cluster: ClusterConfig, facts: dict[str, list[str]]) -> Iterator[Check]:
    known = {}
    for fact in facts.get("partition", ()):
        name, _, state = fact.partition("|")
        known[name] = state
    wanted = (cluster.partition, cluster.cpu_partition, *cluster.timeouts)
    for name in dict.fromkeys(filter(None, wanted)):
        if name not in known:
            hint = did_you_mean(name, known)
            yield Check(f"partition {name}", f"there is none.{hint} There are: {', '.join(known)}")
        else:
            yield Check(f"partition {name}", "" if known[name] == "up" else f"it is {known[name]}")
    for kind, (said, *_) in facts.items():
        what, _, name = kind.partition(" ")
        if what == "accepted" and (not name or name in known):
            where = f"partition {name}" if name else "the default partition"
            yield Check(
                f"a job in {where} would be accepted", "" if said == "ok" else _refusal(said, cluster)
            )


def _refusal(said: str, cluster: ClusterConfig) -> str:
    reason = said.removeprefix("allocation failure: ").removeprefix("sbatch: error: ")
    hint = ""
    if "account" in said.lower():
        named = f"account '{cluster.account}'" if cluster.account else "no account is named"
        hint = f" ({named}; 'sacctmgr show assoc user=$USER' lists yours)"
    return reason + hint


def _runtime(cluster: ClusterConfig, *, has_pyxis: bool) -> Check:
    name = f"container_runtime {cluster.container_runtime}"
    if cluster.container_runtime == "none":
        return Check(name, note="the cluster has Pyxis, too" if has_pyxis else "")
    missing = "srun has no --container-image: this cluster has no Pyxis; use container_runtime: none"
    return Check(name, "" if has_pyxis else missing)


def _array(name: str, items: Iterable[str]) -> str:
    return f"{name}=({shlex.join(items)})\n"
