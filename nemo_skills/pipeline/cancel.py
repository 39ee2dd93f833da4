"""`ns cancel`: ends the jobs of experiments, waiting or running."""

import dataclasses
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from nemo_skills.core.errors import UserError
from nemo_skills.core.log import get_logger
from nemo_skills.pipeline.cluster.tunnel import assignments
from nemo_skills.pipeline.launch.docker import LABEL
from nemo_skills.pipeline.launch.experiments import (
    JobStatus,
    attempts,
    choose,
    cluster_of,
    read_statuses,
    status_script,
    statuses,
)
from nemo_skills.pipeline.launch.owner import Life, end_process, life_of
from nemo_skills.pipeline.launch.records import CANCELLED, RUNNING, Record
from nemo_skills.pipeline.launch.slurm import open_tunnel
from nemo_skills.pipeline.launch.slurm_state import read_problem
from nemo_skills.pipeline.launch.supervise import end_leftovers
from nemo_skills.pipeline.options import ExperimentOptions, WhereOptions
from nemo_skills.pipeline.wrapper import wrapper

LOG = get_logger(__name__)

PATIENCE_S = 20
"""How long jobs may take to end; they get ten seconds to save their work."""

# Jobs that had ended before are left alone: their number may mean another job by now
_CANCEL = r"""
active() { squeue --noheader --states=all --jobs="$1" --format='%A|%T' 2>/dev/null |
  grep -vE '[|](COMPLETED|CANCELLED|FAILED|TIMEOUT|NODE_FAIL|PREEMPTED|BOOT_FAIL|DEADLINE|OUT_OF_MEMORY)$' |
  cut -d '|' -f 1; }
ids=$(active "$jobs" | sort -u)
for id in $ids; do echo "ended|$id"; done
if [[ -n $ids ]]; then
  said=$(scancel $ids 2>&1) || echo "said|${said##*$'\n'}"
  for ((i = 0; i < patience * 5; i++)); do
    [[ -z $(active "$(tr '\n' , <<< "$ids")") ]] && break
    sleep 0.2
  done
fi
while IFS= read -r folder; do
  [[ $(cat "$folder/state" 2>/dev/null) == queued ]] && echo cancelled > "$folder/state"
  rm -f -- "$folder"/*secrets.env
done <<< "$folders"
"""


@wrapper()
def cancel(own: ExperimentOptions, where: WhereOptions) -> list[JobStatus]:
    """End the jobs of some experiments, waiting or running, and remove the secrets that were kept for them.

    On Slurm it takes one remote call. On this machine it ends the `ns` that runs the experiment, and what
    that has started.
    """
    if not own.expnames:
        raise UserError(_which(where))
    ended = []
    for name in choose(own.expnames, where):
        ended += _cancel(name, where)
    return ended


def _which(where: WhereOptions) -> str:
    found = statuses(attempts(choose((), where)), where)
    names = dict.fromkeys(one.record.expname for one in found if one.active)
    return f"name the experiments to cancel. Unfinished: {', '.join(names) or 'none'}"


def _cancel(name: str, where: WhereOptions) -> list[JobStatus]:
    records = attempts([name])
    ended = []
    for config in dict.fromkeys(record.config for record in records if record.executor == "slurm"):
        ended += cancel_on_slurm([r for r in records if r.executor == "slurm" and r.config == config], where)
    for record in records:
        if record.executor != "slurm" and record.state == RUNNING:
            ended += _cancel_here(record)
    if not ended:
        LOG.info("%s: nothing to cancel, all jobs have ended", name)
    return ended


def cancel_on_slurm(records: Sequence[Record], where: WhereOptions) -> list[JobStatus]:
    """Cancel all jobs of experiments of one cluster, and wait until they are gone.

    Raises:
        UserError: the cluster cannot be reached, or a job does not end.
    """
    jobs = [(record, job) for record in records for job in record.jobs if job.slurm_id]
    folders = "\n".join(f"{record.exp_dir}/{job.name}" for record, job in jobs)
    ids = ",".join(job.slurm_id or "" for _, job in jobs)
    script = assignments(jobs=ids, folders=folders, patience=PATIENCE_S) + _CANCEL
    tunnel = open_tunnel(cluster_of(records[0], where))
    answer = tunnel.run(status_script(records, before=script)).stdout
    if problem := read_problem(answer):
        raise UserError(f"Slurm's controller does not answer on {tunnel.where}: {problem}", exit_code=1)
    lines = [line.split("|", 1) for line in answer.splitlines() if "|" in line]
    ours = {words for kind, words in lines if kind == "ended"}
    found = [one for one in read_statuses(records, answer) if one.job.slurm_id in ours]
    for one in found:
        LOG.info("%s: job %s (%s) is %s", *_names(one), one.job.slurm_id, one.state.state)
    if left := [one for one in found if one.active]:
        names = ", ".join(f"{one.job.name} ({one.job.slurm_id})" for one in left)
        said = "".join(f" ({words})" for kind, words in lines if kind == "said")
        raise UserError(f"not gone after {PATIENCE_S} seconds: {names}{said}; see ns status", exit_code=1)
    return found


def _cancel_here(record: Record) -> list[JobStatus]:
    life = life_of(record.owner) if record.owner else Life.GONE
    if life is not Life.GONE:
        end_process(record.owner)
        deadline = time.monotonic() + PATIENCE_S
        while life_of(record.owner) is Life.ALIVE:
            if time.monotonic() > deadline:
                raise UserError(f"{record.expname}: the ns that runs it does not end", exit_code=1)
            time.sleep(0.1)
    _end_leftovers(record)
    for path in Path(record.exp_dir or record.folder).glob("*/*secrets.env"):
        path.unlink(missing_ok=True)
    after = [r for r in attempts([record.expname]) if r.id == record.id]
    if after and after[0].state == RUNNING:
        dataclasses.replace(after[0], state=CANCELLED).save()
    found = statuses([r for r in attempts([record.expname]) if r.id == record.id], WhereOptions())
    for one in found:
        LOG.info("%s: job %s is %s", *_names(one), one.state.state)
    return found


def _end_leftovers(record: Record) -> None:
    """End what a killed `ns` has left: processes that know the job's folder, or containers."""
    if record.executor == "local":
        listed = ["docker", "ps", "--all", "--quiet", f"--filter=label={LABEL}={record.id}"]
        names = subprocess.run(listed, capture_output=True, text=True, check=False).stdout.split()
        if names:
            subprocess.run(["docker", "rm", "--force", "--volumes", *names], capture_output=True, check=False)
        return
    for job in record.jobs:
        end_leftovers(f"{record.exp_dir}/{job.name}/run")


def _names(one: JobStatus) -> tuple[str, str]:
    return one.record.expname, one.job.name
