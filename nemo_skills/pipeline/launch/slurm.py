"""Executor `slurm`: jobs are queued here or over SSH, in a few remote calls whatever their number."""

import dataclasses
import io
import os
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from nemo_skills.core.errors import UserError
from nemo_skills.core.log import get_logger
from nemo_skills.pipeline.cluster.config import ClusterConfig
from nemo_skills.pipeline.cluster.env import JobEnv, render_secrets_file, resolve_env
from nemo_skills.pipeline.cluster.ssh import SshTunnel
from nemo_skills.pipeline.cluster.tunnel import LocalTunnel, ShellTunnel, assignments
from nemo_skills.pipeline.launch.layout import SECRETS_FILE, Layout, host_path
from nemo_skills.pipeline.launch.packaging import CodePackage, build_package, extract_script
from nemo_skills.pipeline.launch.plan import Job, Plan
from nemo_skills.pipeline.launch.records import (
    STATE_FILE,
    SUBMITTED,
    JobRecord,
    Record,
    latest,
    nemorun_home,
    new_id,
)
from nemo_skills.pipeline.launch.render import RenderedFile, RenderedJob
from nemo_skills.pipeline.launch.slurm_script import SlurmJob, render_job
from nemo_skills.pipeline.launch.slurm_state import Outcome, query_script, read_answer

LOG = get_logger(__name__)

_PREPARE = r"""
set -u
mkdir -p -- "$exp_dir" "$log_dir" || exit 1
chmod 700 -- "$exp_dir"
command -v sbatch >/dev/null || { echo "there is no sbatch; is this a login node?" >&2; exit 1; }
while IFS= read -r source; do
  [[ -z $source || -e $source ]] || echo "missing|$source"
done <<< "$sources"
[[ -d $code_dir ]] && echo "code|present"
"""

_EXISTING = r"""
while IFS= read -r path; do [[ -e $path ]] && printf '%s\n' "$path"; done <<< "$paths"
true
"""

# All or nothing: a refused job takes back those queued before it
_SUBMIT = r"""
set -u
cd -- "$exp_dir" && tar -xpf - || exit 1
ids=()
submit() {
  local name=$1; shift
  if ! id=$(sbatch --parsable --kill-on-invalid-dep=yes "$@" "$name/job.sbatch"); then
    ((${#ids[@]})) && { scancel "${ids[@]}"; echo "cancelled what was queued before it: ${ids[*]}" >&2; }
    exit 1
  fi
  id=${id%%;*}; ids+=("$id"); echo "job|$name|$id"
}
"""


def render(plan: Plan) -> tuple[RenderedJob, ...]:
    """Return all scripts, with placeholders for what only a submission knows."""
    layout = Layout(exp_dir=f"{job_dir(plan.cluster)}/{plan.expname}/ID", code_dir="CODE")
    return tuple(
        RenderedJob(
            job.name, tuple(RenderedFile(name, text) for name, text in render_job(plan, layout, job).files)
        )
        for job in plan.jobs
    )


def submit(plan: Plan) -> Record:
    """Queue all jobs of the plan.

    Raises:
        UserError: the cluster cannot be reached, a mount source is missing, an experiment of `run_after`
            failed, or Slurm refused a job; nothing stays queued then.
    """
    cluster = plan.cluster
    env = resolve_env(cluster.env_vars, cluster.required_env_vars, os.environ)
    plan = dataclasses.replace(plan, env=env.plain)
    package = build_package(
        Path.cwd(), nemorun_home() / "ns_packages", allow_uncommitted=plan.options.allow_uncommitted
    )
    record_id = new_id(plan.expname)
    layout = Layout(
        exp_dir=f"{job_dir(cluster)}/{plan.expname}/{record_id}",
        code_dir=f"{job_dir(cluster)}/code/{package.digest}",
    )
    with open_tunnel(cluster) as tunnel:
        _prepare(tunnel, plan, layout, package)
        before = _dependencies(tunnel, plan)
        ids = _queue(tunnel, plan, layout, env, before)
    record = Record.of(plan, record_id, state=SUBMITTED, slurm_ids=ids)
    record = dataclasses.replace(record, exp_dir=layout.exp_dir, code_dir=layout.code_dir)
    record.save()
    LOG.info("queued %s: %s", plan.expname, ", ".join(f"{j.name} ({j.slurm_id})" for j in record.jobs))
    return record


def open_tunnel(cluster: ClusterConfig) -> ShellTunnel:
    """Return the way to the place where jobs of a cluster are submitted."""
    ssh = cluster.ssh_tunnel
    if ssh is None:
        return LocalTunnel()
    return SshTunnel(ssh.host, user=ssh.user, port=ssh.port, identity=ssh.identity)


def job_dir(cluster: ClusterConfig) -> str:
    """Return the folder on the cluster under which experiments lie."""
    folder = cluster.ssh_tunnel.job_dir if cluster.ssh_tunnel else cluster.job_dir
    assert folder, "checked when the config was parsed"
    return folder


def existing(cluster: ClusterConfig, paths: Sequence[str]) -> frozenset[str]:
    """Return those of the paths, as jobs see them, that exist."""
    on_host = {host_path(cluster, path): path for path in paths}
    script = assignments(paths="\n".join(on_host)) + _EXISTING
    with open_tunnel(cluster) as tunnel:
        found = tunnel.run(script).stdout.splitlines()
    return frozenset(on_host[path] for path in found)


def state_file(record: Record, job: JobRecord) -> str:
    """Return the file in which a job's batch script says how it ended."""
    return str(PurePosixPath(record.exp_dir or "") / job.name / STATE_FILE)


def _prepare(tunnel: ShellTunnel, plan: Plan, layout: Layout, package: CodePackage) -> None:
    sources = [mount.source for mount in plan.cluster.mounts] if plan.cluster.check_mounts else []
    script = assignments(
        exp_dir=layout.exp_dir,
        log_dir=host_path(plan.cluster, plan.log_dir),
        code_dir=layout.code_dir,
        sources="\n".join(sources),
    )
    lines = tunnel.run(script + _PREPARE, check=False)
    if lines.code not in (0, 1) or "sbatch" in lines.stderr or "annot" in lines.stderr:
        raise UserError(f"cannot submit on {tunnel.where}: {lines.stderr.strip()}")
    if missing := [
        line.removeprefix("missing|") for line in lines.stdout.splitlines() if line[:8] == "missing|"
    ]:
        raise UserError(f"mounted folders do not exist on {tunnel.where}: {', '.join(missing)}")
    if "code|present" not in lines.stdout:
        _upload(tunnel, layout, package)


def _upload(tunnel: ShellTunnel, layout: Layout, package: CodePackage) -> None:
    archive = f"{layout.code_dir}.tar.gz"
    tunnel.put(package.path, archive)
    tunnel.run(
        extract_script(archive, layout.code_dir) + assignments(archive=archive) + 'rm -f -- "$archive"'
    )


def _dependencies(tunnel: ShellTunnel, plan: Plan) -> tuple[str, ...]:
    """Return the ids of the unfinished jobs of the experiments to run after."""
    records = [latest(name) for name in plan.options.run_after]
    jobs = {job.slurm_id: (r, job) for r in records for job in r.jobs if job.slurm_id}
    for record in records:
        if record.executor != "slurm":
            raise UserError(f"--run_after: experiment '{record.expname}' did not run on Slurm")
    if not jobs:
        return ()
    answer = tunnel.run(query_script({i: state_file(r, job) for i, (r, job) in jobs.items()}))
    states = read_answer(answer.stdout, jobs)
    for job_id, (record, job) in jobs.items():
        if states[job_id].outcome in (Outcome.FAILED, Outcome.UNKNOWN) and not _continued(record, job):
            raise UserError(
                f"--run_after: job {job.name} ({job_id}) of experiment '{record.expname}' is"
                f" {states[job_id].state}; log: {job.log}"
            )
    return tuple(i for i in jobs if states[i].outcome is Outcome.ACTIVE)


def _continued(record: Record, job: JobRecord) -> bool:
    # a job that ran out of time is no failure while the next of its chain carries on
    return any(other.name.startswith(f"{job.name}-part") for other in record.jobs)


def _queue(
    tunnel: ShellTunnel, plan: Plan, layout: Layout, env: JobEnv, before: Sequence[str]
) -> Mapping[str, str]:
    """Write all files and queue all jobs in one call; returns job name to Slurm id."""
    jobs = [render_job(plan, layout, job) for job in plan.jobs]
    lines = [_submit_line(plan, job, before) for job in plan.jobs]
    # sbatch hands its own environment to the job, and Slurm keeps it on disk
    script = assignments(exp_dir=layout.exp_dir) + "".join(f"unset {name}\n" for name, _ in env.secrets)
    script += _SUBMIT + "\n".join(lines) + "\n"
    result = tunnel.run(script, check=False, input=_archive(jobs, env))
    found = dict(line.split("|")[1:] for line in result.stdout.splitlines() if line.startswith("job|"))
    if result.code != 0 or len(found) != len(jobs):
        raise UserError(f"Slurm did not take the jobs: {result.stderr.strip() or result.stdout.strip()}")
    return found


def _submit_line(plan: Plan, job: Job, before: Sequence[str]) -> str:
    """Return the call that queues one job; the ids of jobs before it are in the shell array `ids`."""
    index = {other.name: i for i, other in enumerate(plan.jobs)}
    if job.continues:
        needs = [f"afterany:${{ids[{index[job.continues]}]}}"]
    else:
        ids = [*before, *(f"${{ids[{index[name]}]}}" for name in job.after)]
        needs = [f"{plan.cluster.dependency_type}:{':'.join(ids)}"] if ids else []
    dependency = f'"--dependency={needs[0]}" ' if needs else ""
    return f"submit {_quoted(job.name)} {dependency}".rstrip()


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _archive(jobs: Sequence[SlurmJob], env: JobEnv) -> bytes:
    """Return a tar of all job folders; secrets travel in it and nowhere else."""
    buffer = io.BytesIO()
    secrets = render_secrets_file(env) if env.secrets or env.plain else b""
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for job in jobs:
            files = [(name, text.encode(), 0o755) for name, text in job.files]
            if secrets:
                files.append((SECRETS_FILE, secrets, 0o600))
            for name, data, mode in files:
                info = tarfile.TarInfo(f"{job.name}/{name}")
                info.size, info.mode = len(data), mode
                tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()
