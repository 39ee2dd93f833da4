"""The one remote call that queues all jobs of a plan, and what follows when it breaks off."""

import io
import shlex
import tarfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from nemo_skills.core.errors import UserError
from nemo_skills.core.log import get_logger
from nemo_skills.pipeline.cluster.env import JobEnv, render_secrets_file
from nemo_skills.pipeline.cluster.tunnel import (
    ConnectionLostError,
    ShellTunnel,
    TunnelError,
    TunnelTimeoutError,
)
from nemo_skills.pipeline.launch.layout import SECRETS_FILE, Layout, host_path
from nemo_skills.pipeline.launch.plan import Job, Plan
from nemo_skills.pipeline.launch.records import STATE_FILE
from nemo_skills.pipeline.launch.slurm_remote import (
    LEFT_BEHIND,
    Answer,
    Calls,
    settle_script,
    submit_script,
)
from nemo_skills.pipeline.launch.slurm_script import render_job

LOG = get_logger(__name__)

WRITES_FILE = "writes"
"""In the folder of a job: the files that it writes, as the hosts see them, a line each."""
_ATTEMPTS = 3
_SETTLE_TIMEOUT_S = 120.0


@dataclass(frozen=True, kw_only=True)
class Order:
    """A plan, and what its submission has to know besides."""

    plan: Plan
    layout: Layout
    root: str
    """Folder of all experiments."""
    env: JobEnv
    before: Sequence[str] = ()
    """Ids of the jobs of other experiments that every first job waits for."""
    replaces: Sequence[str] = ()
    """Ids of queued jobs whose work these jobs take over."""


def queue(tunnel: ShellTunnel, order: Order) -> Mapping[str, str]:
    """Write all files and queue all jobs; returns job name to Slurm id.

    Raises:
        UserError: Slurm refused a job or the connection was lost; nothing stays queued.
    """
    plan, layout = order.plan, order.layout
    calls = Calls(
        root=order.root,
        exp_dir=layout.exp_dir,
        folders=_folders(plan),
        code_dir=layout.code_dir,
        submit=submit_calls(order),
        secret_names=tuple(name for name, _ in order.env.secrets),
        replaces=tuple(order.replaces),
        release="hold" not in plan.cluster.sbatch_options,
    )
    try:
        result = tunnel.run(submit_script(calls), check=False, input=_archive(order))
    except KeyboardInterrupt:
        _settle(tunnel, order, keep=False)
        raise
    except (ConnectionLostError, TunnelTimeoutError) as trouble:
        if ids := _settle(tunnel, order, keep=True):
            LOG.info("all jobs had been queued")
            return ids
        raise UserError(f"{trouble}\nNothing stays queued: run the command again.") from None
    ids = Answer.read(result.stdout).ids
    if result.code != 0 or len(ids) != len(plan.jobs):
        said = "; ".join(line.strip() for line in result.stderr.splitlines() if line.strip())
        rest = "" if result.code == LEFT_BEHIND else ", nothing stays queued"
        raise UserError(f"Slurm on {tunnel.where} did not take the jobs{rest}: {said}")
    return ids


def _settle(tunnel: ShellTunnel, order: Order, *, keep: bool) -> Mapping[str, str]:
    """Return the ids if all jobs had been queued and `keep` is set; else undo what was done."""
    LOG.warning("the submission broke off; looking at what became of it")
    reason = ""
    for attempt in range(_ATTEMPTS):
        time.sleep(attempt)
        try:
            script = settle_script(order.layout.exp_dir, keep=keep)
            result = tunnel.run(script, check=False, timeout=_SETTLE_TIMEOUT_S)
        except TunnelError as error:
            reason = str(error)
            continue
        if result.code == 0:
            return Answer.read(result.stdout).ids
        reason = result.stderr.strip()
    raise UserError(
        f"the submission broke off, and what became of it is not known: {reason}\nUnless all jobs were"
        f" queued, they are on hold and will not start. On {tunnel.where},"
        f" 'squeue --me --Format=JobID,WorkDir:200' shows those below {order.layout.exp_dir}."
        " Cancel them, or run the command again, which does so."
    )


def _folders(plan: Plan) -> tuple[str, ...]:
    folders = [plan.log_dir]
    if plan.cluster.check_mounts:
        folders += [str(PurePosixPath(path).parent) for job in plan.jobs for path in job.writes]
    return tuple(dict.fromkeys(host_path(plan.cluster, folder) for folder in folders))


def submit_calls(order: Order) -> tuple[str, ...]:
    """Return the calls of the shell function `submit`, one a job."""
    return tuple(_call(order, job) for job in order.plan.jobs)


def _call(order: Order, job: Job) -> str:
    """Return the call that queues one job."""
    plan = order.plan
    index = {other.name: i for i, other in enumerate(plan.jobs)}
    if job.continues:
        needs = [f"afterany:${{ids[{index[job.continues]}]}}"]
    else:
        within = [*job.after_ids, *(f"${{ids[{index[name]}]}}" for name in job.after)]
        kind = "afterany" if job.despite_failure else "afterok"
        needs = [f"{kind}:{':'.join(within)}"] if within else []
        if order.before:
            needs.append(f"{plan.cluster.dependency_type}:{':'.join(order.before)}")
    dependency = f' "--dependency={",".join(needs)}"' if needs else ""
    return f"submit {shlex.quote(job.name)}{dependency}"


def _archive(order: Order) -> bytes:
    """Return a tar of all job folders; secrets travel in it and nowhere else."""
    plan = order.plan
    secrets = render_secrets_file(order.env) if order.env.secrets else b""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for job in plan.jobs:
            writes = "".join(f"{host_path(plan.cluster, path)}\n" for path in job.writes)
            files = [(name, text, 0o755) for name, text in render_job(plan, order.layout, job).files]
            files += [(STATE_FILE, "queued\n", 0o644), (WRITES_FILE, writes, 0o644)]
            for name, text, mode in files:
                _add(tar, f"{job.name}/{name}", text.encode(), mode)
            if secrets:
                _add(tar, f"{job.name}/{SECRETS_FILE}", secrets, 0o600)
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes, mode: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = len(data), mode, int(time.time())
    tar.addfile(info, io.BytesIO(data))
