"""Figures of a training run on boards that need a package of their own."""

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_skills.core.errors import UserError
from nemo_skills.core.jsonl import write_file
from nemo_skills.core.log import get_logger

if TYPE_CHECKING:
    from nemo_skills.training.metrics_log import WandbOptions

LOG = get_logger(__name__)

_INSTALL = "install it with: pip install 'nemo-skills[boards]'"
ID_FILE = "wandb_id"


class TensorBoardSink:
    """Event files for TensorBoard, all runs of a chain in one folder."""

    def __init__(self, folder: Path, resume_step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError(f"TensorBoard's package is missing ({error}); {_INSTALL}") from None
        # what an earlier job logged after the step that this one goes on from is hidden
        self._writer = SummaryWriter(str(folder), purge_step=resume_step + 1 if resume_step else None)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take the figures of one step."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is pending."""
        self._writer.close()


class WandbSink:
    """A run of Weights & Biases; its id is kept, so that the jobs of a chain go on with the same run."""

    def __init__(self, folder: Path, options: "WandbOptions", config: Mapping[str, object]) -> None:
        try:
            import wandb
        except ImportError:
            raise UserError(f"W&B's package wandb is missing; {_INSTALL}, or train without W&B") from None
        id_file = folder / ID_FILE
        if not id_file.exists():
            write_file(id_file, secrets.token_hex(4).encode())
        mode: Any = os.environ.get("WANDB_MODE")
        if mode is None and not os.environ.get("WANDB_API_KEY"):
            LOG.warning("WANDB_API_KEY is not set: the run stays in %s; send it with wandb sync", folder)
            mode = "offline"
        self._run = wandb.init(
            project=options.project,
            name=options.name,
            group=options.group,
            id=id_file.read_text().strip(),
            resume="allow",
            dir=str(folder),
            mode=mode,
            config=dict(config),
            # the log of the job is kept anyway
            settings=wandb.Settings(console="off", silent=mode == "offline"),
        )
        # W&B's own steps never go back, as those of a resumed run do
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take the figures of one step."""
        self._run.log({"step": step, **values})

    def close(self) -> None:
        """Write what is pending."""
        self._run.finish()
