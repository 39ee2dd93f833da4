"""`ns summarize_results`: the scores of models, side by side."""

import functools
from collections.abc import Callable, Sequence

from nemo_skills.core.errors import UserError
from nemo_skills.core.log import get_logger
from nemo_skills.pipeline.cluster.config import load_cluster_config
from nemo_skills.pipeline.cluster.tunnel import LocalTunnel, ShellTunnel
from nemo_skills.pipeline.launch.layout import host_path
from nemo_skills.pipeline.launch.slurm import open_tunnel
from nemo_skills.pipeline.options import SummaryOptions, WhereOptions
from nemo_skills.pipeline.result_board import send
from nemo_skills.pipeline.result_files import Result, choose, read_results
from nemo_skills.pipeline.result_table import FORMATS
from nemo_skills.pipeline.wrapper import wrapper

LOG = get_logger(__name__)


@wrapper()
def summarize_results(own: SummaryOptions, where: WhereOptions) -> list[Result]:
    """Show the scores of benchmarks that lie in some folders, models side by side.

    It finds `eval-results/<benchmark>/metrics.json` up to a few levels below each folder, with --cluster on
    that cluster, and returns what it has found. A score behind which stands ! is not to be relied on; why is
    said below.
    """
    found = choose(find_results(own.folders, where), own.benchmarks, own.only)
    if not found:
        filtered = " that fit --benchmarks and --only" if own.benchmarks or own.only else ""
        raise UserError(f"there are no results{filtered} in {', '.join(own.folders)}")
    FORMATS[own.format](found, groups=own.groups)
    if own.wandb_project:
        send(found, own.wandb_project, own.wandb_group)
    return found


def find_results(folders: Sequence[str], where: WhereOptions) -> list[Result]:
    """Return all scores below folders on the machine that the options name."""
    locate, tunnel = open_place(where)
    return read_results(map(locate, folders), tunnel)


def open_place(where: WhereOptions) -> tuple[Callable[[str], str], ShellTunnel]:
    """Return how to find a path on the machine that the options name, and the way to that machine."""
    config = load_cluster_config(where.cluster, where.config_dir)
    tunnel = open_tunnel(config) if config.executor == "slurm" else LocalTunnel()
    return functools.partial(host_path, config), tunnel
