"""From cluster options to the cluster config that a plan uses."""

import dataclasses
from collections.abc import Iterable
from pathlib import PurePosixPath

from nemo_skills.core.errors import UserError
from nemo_skills.core.log import get_logger
from nemo_skills.pipeline.cluster.config import ClusterConfig, load_cluster_config
from nemo_skills.pipeline.cluster.mounts import Mount, MountTable, parse_mount
from nemo_skills.pipeline.options import ClusterOptions

LOG = get_logger(__name__)


def resolve_cluster(options: ClusterOptions, paths: Iterable[str] = ()) -> ClusterConfig:
    """Load the config, add `--mount_paths`, and with `--check_mounted_paths` mount what no mount covers.

    Args:
        options: The cluster options.
        paths: Paths that the job is given, of which absolute ones must be visible inside containers.

    Raises:
        UserError: there is no such config, it is malformed, its mounts contradict each other, or a path
            begins with `~`.
    """
    paths = tuple(paths)
    for path in paths:
        # a job would make a folder of that name
        if path.startswith("~"):
            raise UserError(
                f"{path}: `~` stands for a folder only where a shell replaces it, not after `=`."
                " Write the path in full, or with $HOME."
            )
    config = load_cluster_config(options.cluster, options.config_dir)
    if options.cluster is None and config.executor == "none":
        LOG.info("no --cluster given: running on this machine")
    table = MountTable(config.mounts).with_extra(map(parse_mount, options.mount_paths))
    if options.check_mounted_paths and config.uses_containers:
        # what lies below /nemo_run is mounted by the executor itself
        wanted = (p for p in paths if p.startswith("/") and not PurePosixPath(p).is_relative_to("/nemo_run"))
        missing = table.unmounted(wanted)
        for path in missing:
            LOG.info("mounting %s, which no mount covers", path)
        table = table.with_extra(Mount(path, path) for path in missing)
    return dataclasses.replace(config, mounts=table.mounts, check_mounts=options.check_mounted_paths)
