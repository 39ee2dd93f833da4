"""Executor `slurm`: jobs are queued here or over SSH, in a few remote calls whatever their number."""

import dataclasses
import functools
import os
from collections.abc import Iterable
from pathlib import PurePosixPath

from nemo_skills.core.errors import UserError
from nemo_skills.core.log import get_logger
from nemo_skills.pipeline.cluster.config import ClusterConfig
from nemo_skills.pipeline.cluster.config import SshTunnel as SshConfig
from nemo_skills.pipeline.cluster.env import resolve_env
from nemo_skills.pipeline.cluster.mounts import normalise_path
from nemo_skills.pipeline.cluster.ssh import SshTunnel
from nemo_skills.pipeline.cluster.tunnel import LocalTunnel, ShellTunnel, assignments
from nemo_skills.pipeline.launch.code import choose_code
from nemo_skills.pipeline.launch.layout import Layout, host_path
from nemo_skills.pipeline.launch.packaging import CodePackage, extract_script
from nemo_skills.pipeline.launch.plan import Plan
from nemo_skills.pipeline.launch.records import SUBMITTED, Record, new_id
from nemo_skills.pipeline.launch.render import RenderedFile, RenderedJob
from nemo_skills.pipeline.launch.slurm_after import Predecessors, state_file
from nemo_skills.pipeline.launch.slurm_queue import Order, queue
from nemo_skills.pipeline.launch.slurm_remote import NO_CONTROLLER, Answer, look_script
from nemo_skills.pipeline.launch.slurm_script import render_job
from nemo_skills.pipeline.launch.survey import Survey

__all__ = ["approach", "job_dir", "open_tunnel", "render", "state_file", "submit", "survey"]

LOG = get_logger(__name__)
_LISTED = 12


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Ground:
    """What a submission finds on the cluster once everything is ready for it."""

    code_dir: str
    slurm_cluster: str
    """The cluster's own name."""
    before: tuple[str, ...]
    """Ids of the unfinished jobs of the experiments to run after."""
    stale: tuple[str, ...]
    """Ids of queued jobs that were to write the same files but cannot run."""


def render(plan: Plan) -> tuple[RenderedJob, ...]:
    """Return all scripts, with placeholders for what only a submission knows."""
    root = job_dir(plan.cluster)
    layout = Layout(exp_dir=f"{root}/{plan.expname}/ID", code_dir=f"{root}/code/DIGEST")
    return tuple(
        RenderedJob(
            job.name, tuple(RenderedFile(name, text) for name, text in render_job(plan, layout, job).files)
        )
        for job in plan.jobs
    )


def submit(plan: Plan, found: Survey | None = None) -> Record:
    """Queue all jobs of the plan; `found` is a survey made for it with the same `run_after`, just now.

    Raises:
        UserError: the cluster cannot be reached, a mount source is missing, an experiment of `run_after`
            failed, a job in the queue writes the same files, or Slurm refused a job; nothing stays queued.
    """
    cluster = plan.cluster
    env = resolve_env(cluster.env_vars, cluster.required_env_vars, os.environ)
    plan = dataclasses.replace(plan, env=env.plain)
    render(plan)  # mistakes come before anything is sent
    code = choose_code(plan)
    found = found or survey(cluster, run_after=plan.options.run_after)
    assert found.answer is not None, "this survey is not of a Slurm cluster"
    ground = _prepare(plan, code, found.answer)
    record_id, root = new_id(plan.expname), job_dir(cluster)
    layout = Layout(exp_dir=f"{root}/{plan.expname}/{record_id}", code_dir=ground.code_dir)
    order = Order(
        plan=plan,
        layout=layout,
        root=root,
        env=env,
        before=ground.before,
        replaces=(*plan.replaces, *ground.stale),
    )
    ids = queue(open_tunnel(cluster), order)
    record = dataclasses.replace(
        Record.of(plan, record_id, state=SUBMITTED, slurm_ids=ids),
        exp_dir=layout.exp_dir,
        code_dir=layout.code_dir,
        slurm_cluster=ground.slurm_cluster,
    )
    record.save()
    LOG.info("queued %s: %s; logs in %s", plan.expname, _listed(record), record.log_dir)
    return record


def _listed(record: Record) -> str:
    jobs = [f"{job.name} ({job.slurm_id})" for job in record.jobs]
    return ", ".join(jobs) if len(jobs) <= _LISTED else f"{len(jobs)} jobs, {jobs[0]} to {jobs[-1]}"


def open_tunnel(cluster: ClusterConfig) -> ShellTunnel:
    """Return the way to the place where jobs of a cluster are submitted; one connection serves all calls."""
    ssh = cluster.ssh_tunnel
    if ssh is None:
        return LocalTunnel()
    return _connection(ssh)


def approach(cluster: ClusterConfig) -> None:
    """Begin to connect, without waiting for it."""
    if cluster.ssh_tunnel:
        _connection(cluster.ssh_tunnel).connect_soon()


@functools.cache
def _connection(ssh: SshConfig) -> SshTunnel:
    return SshTunnel(ssh.host, user=ssh.user, port=ssh.port, identity=ssh.identity)


def job_dir(cluster: ClusterConfig) -> str:
    """Return the folder on the cluster under which experiments lie.

    Raises:
        UserError: it is relative.
    """
    folder = cluster.ssh_tunnel.job_dir if cluster.ssh_tunnel else cluster.job_dir
    assert folder, "checked when the config was parsed"
    return normalise_path(folder, "job_dir")


def survey(
    cluster: ClusterConfig,
    files: Iterable[str] = (),
    writes: Iterable[str] = (),
    run_after: Iterable[str] = (),
) -> Survey:
    """Tell which files exist and which jobs in the queue write what; paths are as jobs see them.

    Raises:
        UserError: the cluster or its controller does not answer, or `run_after` names no experiment.
    """
    host_files = {host_path(cluster, path): path for path in files}
    host_writes = {host_path(cluster, path): path for path in writes}
    sources = [mount.source for mount in cluster.mounts] if cluster.check_mounts else []
    script = look_script(job_dir(cluster), host_files, sources) + Predecessors(run_after).query()
    text = _ask(open_tunnel(cluster), script)
    answer = Answer.read(text)
    # the newest comes last: of a chain of jobs that is the last part
    writers = sorted((w for w in answer.writers if w.path in host_writes), key=lambda w: int(w.job.id))
    return Survey(
        exists=frozenset(host_files[path] for path in answer.words("exists")),
        queued={host_writes[w.path]: w.job for w in writers if w.active},
        answer=text,
    )


def _prepare(plan: Plan, code: CodePackage | str, text: str) -> _Ground:
    """Check what the cluster has said, and send the code where it is absent."""
    cluster, answer = plan.cluster, Answer.read(text)
    tunnel = open_tunnel(cluster)
    if missing := _missing_mounts(plan, answer):
        raise UserError(f"mounted folders do not exist on {tunnel.where}: {', '.join(missing)}")
    stale = _refuse_conflicts(plan, answer)
    name = (answer.words("cluster") or [""])[0]
    before = Predecessors(plan.options.run_after).unfinished(text, name)
    code_dir = code if isinstance(code, str) else f"{job_dir(cluster)}/code/{code.digest}"
    if code_dir not in answer.words("code"):
        if isinstance(code, str):
            raise UserError(f"the packaged code {code} (--reuse_code_exp) is no longer on {tunnel.where}")
        _upload(tunnel, code, code_dir)
    return _Ground(code_dir=code_dir, slurm_cluster=name, before=before, stale=stale)


def _missing_mounts(plan: Plan, answer: Answer) -> list[str]:
    """Return mount sources that are not there, but for those of outputs that were mounted as they are."""
    written = [plan.log_dir, *(path for job in plan.jobs for path in job.writes)]
    made = {m.source for m in plan.cluster.mounts if m.source == m.target and _holds(m.source, written)}
    return [source for source in answer.words("missing") if source not in made]


def _holds(folder: str, paths: Iterable[str]) -> bool:
    return any(PurePosixPath(path).is_relative_to(folder) for path in paths)


def _refuse_conflicts(plan: Plan, answer: Answer) -> tuple[str, ...]:
    """Check that no job in the queue writes what the plan does; returns the ids of those that never will."""
    writes = {host_path(plan.cluster, path) for job in plan.jobs for path in job.writes}
    writers = [writer for writer in answer.writers if writer.path in writes]
    active = {w.job.id: w for w in writers if w.active and w.job.id not in plan.replaces}
    if active:
        listed = "".join(
            f"\n  job {w.job.id} ({w.job.state}) of experiment '{w.job.expname}' writes {w.path}"
            for w in active.values()
        )
        raise UserError(
            f"other jobs in the queue write the same files; wait for them, or cancel them with"
            f" 'scancel {' '.join(active)}':{listed}"
        )
    return tuple(dict.fromkeys(w.job.id for w in writers if w.job.state == "PENDING"))


def _upload(tunnel: ShellTunnel, package: CodePackage, code_dir: str) -> None:
    archive = f"{code_dir}.tar.gz"
    tunnel.put(package.path, archive)
    tunnel.run(extract_script(archive, code_dir) + assignments(archive=archive) + 'rm -f -- "$archive"')


def _ask(tunnel: ShellTunnel, script: str) -> str:
    """Run a script that only looks, and say clearly what is wrong with the place."""
    result = tunnel.run(script, check=False)
    said = "; ".join(line.strip() for line in result.stderr.splitlines() if line.strip())
    if result.code == NO_CONTROLLER:
        raise UserError(f"Slurm's controller does not answer on {tunnel.where}: {said}")
    if result.code != 0:
        raise UserError(f"cannot submit on {tunnel.where}: {said}")
    return result.stdout
