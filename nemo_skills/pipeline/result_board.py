"""Scores as runs of Weights & Biases."""

import os
from collections.abc import Sequence

from nemo_skills.core.errors import UserError
from nemo_skills.core.log import get_logger
from nemo_skills.pipeline.result_files import Result, folders_of
from nemo_skills.pipeline.result_lines import lines

LOG = get_logger(__name__)


def send(results: Sequence[Result], project: str, group: str | None = None) -> None:
    """Send all scores to a project, as a run for each folder; `WANDB_MODE=offline` keeps them here.

    Raises:
        UserError: the library is not installed.
    """
    try:
        import wandb
    except ImportError:
        raise UserError("--wandb_project needs wandb: pip install 'nemo-skills[boards]'") from None
    all_lines = lines(results)
    for folder in folders_of(results):
        own = [line for line in all_lines if line.folder == folder]
        values: dict[str, float | int | None] = {}
        for line in own:
            values[f"{line.benchmark}/{line.mode}/{line.measure}"] = line.score
            for name in ("no_answer", "timed_out", "truncated", "failed", "avg_tokens", "generation_seconds"):
                values[f"{line.benchmark}/{name}"] = getattr(line, name)
            values[f"{line.benchmark}/valid"] = int(line.valid)
        run = wandb.init(
            project=project,
            group=group,
            name=own[0].model,
            config={"folder": folder},
            mode=None if os.environ.get("WANDB_MODE") or wandb.api.api_key else "offline",
        )
        run.log({name: value for name, value in values.items() if value is not None})
        run.finish()
        LOG.info("%d scores of %s are in the project %s", len(own), folder, project)
