"""`ns status`: where the jobs of experiments are."""

import json
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nemo_skills.core.log import get_logger
from nemo_skills.pipeline.launch.experiments import JobStatus, attempts, choose, current, statuses
from nemo_skills.pipeline.launch.slurm_state import Outcome
from nemo_skills.pipeline.options import ExperimentOptions, FormatOptions, WhereOptions
from nemo_skills.pipeline.wrapper import wrapper

LOG = get_logger(__name__)

LATEST = 20
"""How many experiments are listed unless `--all` is given."""
_COLOURS = {Outcome.SUCCEEDED: "green", Outcome.FAILED: "red", Outcome.ACTIVE: "cyan"}
_WIDE = 100_000


@wrapper()
def status(own: ExperimentOptions, where: WhereOptions, output: FormatOptions) -> list[JobStatus]:
    """Show the state of every job of some experiments, or of the latest ones: what Slurm itself says of them.

    Experiments are those launched from this machine. On Slurm it takes one remote call for each cluster.
    """
    names = choose(own.expnames, where)
    if not own.expnames and not output.all and len(names) > LATEST:
        LOG.info("the latest %d of %d experiments; --all shows all", LATEST, len(names))
        names = names[-LATEST:]
    found = current(statuses(attempts(names), where))
    if output.format == "json":
        print(json.dumps([as_dict(one) for one in found], indent=1))
    elif found:
        _show(found)
    else:
        LOG.info("no experiment was launched from this machine")
    return found


def as_dict(one: JobStatus) -> dict[str, str | int | None]:
    """Return what `--format json` shows of a job."""
    return {
        "experiment": one.record.expname,
        "id": one.record.id,
        "cluster": one.record.cluster,
        "job": one.job.name,
        "slurm_id": one.job.slurm_id,
        "state": one.state.state,
        "outcome": one.state.outcome.value,
        "reason": one.state.reason,
        "elapsed": one.state.elapsed,
        "exit_code": one.state.exit_code,
        "log": one.job.log,
    }


def _show(found: Sequence[JobStatus]) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _WIDE  # whoever reads it line by line wants whole lines
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in ("experiment", "job", "id", "state", "elapsed", "exit", "reason"):
        table.add_column(name, overflow="fold", justify="right" if name in ("elapsed", "exit") else "left")
    table.add_column("log", overflow="fold")
    previous = ""
    for one in found:
        code = "" if one.state.exit_code is None else str(one.state.exit_code)
        name = one.record.expname if one.record.expname != previous else ""
        previous = one.record.expname
        words = [name, one.job.name, one.job.slurm_id or ""]
        state = Text(one.state.state, style=_COLOURS.get(one.state.outcome, "yellow"))
        rest = [one.state.elapsed, code, one.state.reason, one.job.log]
        table.add_row(*map(Text, words), state, *map(Text, rest))
    console.print(table)
