"""Where logs go when the user does not say: into a folder of their own, visible to jobs like any other."""

import dataclasses
from pathlib import Path

from nemo_skills.pipeline.cluster.config import ClusterConfig
from nemo_skills.pipeline.cluster.mounts import Mount, MountTable
from nemo_skills.pipeline.launch.records import nemorun_home
from nemo_skills.pipeline.launch.slurm import job_dir

LOGS_TARGET = "/nemo_run/logs"
LOGS = "logs"
"""Below the folder of all experiments on a cluster."""


def default_log_dir(cluster: ClusterConfig, expname: str) -> tuple[ClusterConfig, str]:
    """Return the folder for the logs of an experiment, and the cluster with whatever mount it needs."""
    if cluster.executor == "slurm":
        folder = f"{job_dir(cluster)}/{LOGS}/{expname}"
    else:
        folder = str(local_logs() / expname)
    if not cluster.uses_containers:
        return cluster, folder
    if cluster.executor == "local":
        Path(folder).mkdir(parents=True, exist_ok=True)
    mounts = MountTable(cluster.mounts).with_extra([Mount(folder, LOGS_TARGET)]).mounts
    return dataclasses.replace(cluster, mounts=mounts), LOGS_TARGET


def local_logs() -> Path:
    """Return the folder of all such logs on this machine."""
    return nemorun_home().absolute() / f"ns_{LOGS}"
