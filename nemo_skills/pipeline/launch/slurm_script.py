"""The batch script of one Slurm job. Pure: the same plan and layout always give the same text."""

import shlex
from dataclasses import dataclass, field

from nemo_skills.pipeline.cluster.config import Container
from nemo_skills.pipeline.launch.layout import JOB_TARGET, SECRETS_FILE, Layout, host_path
from nemo_skills.pipeline.launch.plan import Component, Job, Plan
from nemo_skills.pipeline.launch.render import render_component

WARNING_S = 60
"""Seconds before the time limit at which components are told to save and stop."""
GRACE_S = 10
"""Seconds between SIGTERM and the end of the batch script, which ends what is left."""


@dataclass(frozen=True)
class SlurmJob:
    """The files of one job, relative to its folder."""

    name: str
    after: tuple[str, ...]
    files: tuple[tuple[str, str], ...] = field(repr=False)


def render_job(plan: Plan, layout: Layout, job: Job) -> SlurmJob:
    """Return the batch script and the component scripts of one job."""
    files = [("job.sbatch", _batch_script(plan, layout, job))]
    for component in job.components:
        script = render_component(component, layout.site(plan, job, component))
        files.append((f"{component.name}.sh", script))
    return SlurmJob(job.name, job.after, tuple(files))


def _batch_script(plan: Plan, layout: Layout, job: Job) -> str:
    head = ["#!/bin/bash", *_directives(plan, job)]
    steps = [_step(plan, layout, job, index) for index in range(len(job.components))]
    main = job.components.index(job.main)
    run_dir = JOB_TARGET if plan.cluster.uses_containers else layout.job_dir(job)
    values = {
        "job_dir": layout.job_dir(job),
        "seen_job_dir": run_dir,
        "secrets": f"{layout.job_dir(job)}/{SECRETS_FILE}",
        "main": str(main),
        "names": " ".join(c.name for c in job.components),
        "previous": f"{layout.exp_dir}/{job.continues}/state" if job.continues else "",
    }
    assigned = [f"{name}={shlex.quote(value)}" for name, value in values.items()]
    return "\n".join([*head, "", *assigned, "", _PROLOGUE, *steps, _EPILOGUE])


def _directives(plan: Plan, job: Job) -> list[str]:
    """Return the `#SBATCH` lines; components that each ask for GPUs get nodes of their own."""
    groups = job.node_groups
    lines = _flags(_common_options(plan, job))
    for index, group in enumerate(groups):
        if index:
            lines.append("#SBATCH hetjob")
        lines += _flags(_node_options(plan, group))
    return lines


def _flags(options: dict[str, str | None]) -> list[str]:
    return [
        f"#SBATCH --{name}" + (f"={shlex.quote(value)}" if value else "")
        for name, value in options.items()
        if value is not None
    ]


def _common_options(plan: Plan, job: Job) -> dict[str, str | None]:
    cluster, options = plan.cluster, plan.options
    log = host_path(cluster, plan.log_dir)
    return {
        "job-name": f"{cluster.job_name_prefix}{job.name}",
        "account": cluster.account,
        "qos": options.qos or cluster.qos,
        "time": cluster.timeouts.get(plan.partition(job) or "", cluster.default_timeout),
        "time-min": options.time_min,
        "output": f"{log}/{job.name}-sbatch.log".replace("%", "%%"),
        "open-mode": "append",
        "requeue": "",
        "signal": f"B:USR1@{WARNING_S}",
        "mail-user": cluster.mail_user,
        "mail-type": cluster.mail_type,
        **cluster.sbatch_options,
    }


def _node_options(plan: Plan, group: tuple[Component, ...]) -> dict[str, str | None]:
    gpus = max(c.gpus for c in group)
    return {
        "partition": plan.partition_of(group),
        "nodes": str(max(c.nodes for c in group)),
        "ntasks-per-node": str(max(c.tasks_per_node for c in group)),
        "gpus-per-node": str(gpus) if gpus else None,
        "exclusive": None if plan.options.not_exclusive else "",
    }


def _step(plan: Plan, layout: Layout, job: Job, index: int) -> str:
    """Return the `srun` of one component, in the background."""
    component = job.components[index]
    group = next(i for i, g in enumerate(job.node_groups) if component in g)
    argv = ["srun", f"--het-group={group}"] if len(job.node_groups) > 1 else ["srun"]
    argv += [
        "--overlap",
        "--kill-on-bad-exit=1",
        f"--nodes={component.nodes}",
        f"--ntasks={component.nodes * component.tasks_per_node}",
        f"--ntasks-per-node={component.tasks_per_node}",
        f"--output={host_path(plan.cluster, plan.log_path(job, component)).replace('%', '%%')}",
        "--open-mode=append",
    ]
    seen = layout.job_dir(job)
    if plan.cluster.uses_containers:
        seen = JOB_TARGET
        argv += _container_options(plan, layout, job, plan.cluster.container(component.role))
    argv += ["bash", f"{seen}/{component.name}.sh"]
    return f"{shlex.join(argv)} &\npids+=($!)"


def _container_options(plan: Plan, layout: Layout, job: Job, container: Container) -> list[str]:
    mounts = ",".join(map(str, layout.mounts(plan, job)))
    return [
        f"--container-image={container.ref}",
        f"--container-mounts={mounts}",
        "--container-workdir=/nemo_run/code",
        "--no-container-mount-home",
    ]


_PROLOGUE = r"""
# A job that continues another has nothing to do unless that one ran out of time
if [[ -n $previous ]]; then
  state=$(cat "$previous" 2>/dev/null)
  if [[ $state != timeout ]]; then
    echo "the job before this one ended as '${state:-unknown}': nothing to continue"
    echo "${state:-failed}" > "$job_dir/state"
    rm -f "$secrets"
    [[ $state == succeeded ]]; exit
  fi
fi
run="run-$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}"
mkdir -p "$job_dir/$run"
export NS_RUN_DIR="$seen_job_dir/$run"
names=($names)
pids=()
state=''
stop() { kill -TERM "${pids[@]}" 2>/dev/null; }
# walltime is near: components save what they have, and the next job of the chain continues
trap 'state=timeout; echo "time limit is near: stopping"; stop' USR1
# scancel, preemption or requeue: a job that is to run again keeps its secrets
trap 'state=${state:-cancelled}; stop' TERM
"""

_EPILOGUE = r"""
# The first exit ends the job; the main's exit code is the job's
first=''
while [[ -z $first ]]; do
  wait -n "${pids[@]}" 2>/dev/null
  for i in "${!pids[@]}"; do
    kill -0 "${pids[i]}" 2>/dev/null || { first=$i; break; }
  done
done
[[ $first != "$main" ]] && { sleep 0.3; kill -0 "${pids[main]}" 2>/dev/null || first=$main; }
wait "${pids[first]}"; code=$?
if [[ $first != "$main" && -z $state ]]; then
  echo "${names[first]} ended with exit code $code while the main was running"
  [[ $code == 0 ]] && code=1
fi
stop
for ((i = 0; i < __GRACE__ * 10; i++)); do
  alive=''
  for pid in "${pids[@]}"; do kill -0 "$pid" 2>/dev/null && alive=1; done
  [[ -z $alive ]] && break
  sleep 0.1
done
[[ $state == timeout && $first == "$main" && $code == 0 ]] && state=succeeded
if [[ -z $state ]]; then
  if [[ $code == 0 ]]; then state=succeeded; else state=failed; fi
fi
echo "$state" > "$job_dir/state"
[[ $state == succeeded ]] && code=0
[[ $state != succeeded && $code == 0 ]] && code=1
requeued() { scontrol show job "$SLURM_JOB_ID" 2>/dev/null | grep -qi 'JobState=.*requeue'; }
[[ $state == cancelled ]] && requeued || rm -f "$secrets"
echo "job ended: $state, exit code $code"
exit "$code"
""".replace("__GRACE__", str(GRACE_S))
