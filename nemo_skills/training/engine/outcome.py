"""When to stop, and how a run ended, in files that the next one of a chain reads. Imports no torch."""

import math
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from nemo_skills.core.jsonl import disk_errors, write_file
from nemo_skills.core.log import get_logger
from nemo_skills.training.config import ScheduleConfig, TrainingConfig
from nemo_skills.training.engine.settings import Settings, check_settings, run_settings

LOG = get_logger(__name__)

FINISHED_FILE = "finished.json"
STOPPED_FILE = "stopped.json"
STOPPED_EXIT_CODE = 3
"""All is saved, but steps are left. torchrun turns every failure into 1: judge by `stopped.json` then."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Where a run ended."""

    step: int
    reason: str
    max_epochs: int
    max_steps: int
    settings: Settings


def already_finished(config: TrainingConfig, schedule: ScheduleConfig) -> bool:
    """Tell whether a run in this folder has done all steps of this schedule.

    Raises:
        UserError: it has, but with other data or settings.
    """
    path = Path(config.exp_manager.explicit_log_dir) / FINISHED_FILE
    try:
        found: Any = orjson.loads(path.read_bytes())
        same = (found["max_epochs"], found["max_steps"]) == (schedule.max_epochs, schedule.max_steps)
    except (OSError, ValueError, KeyError, TypeError):
        return False
    if same:
        check_settings(path, run_settings(config))
        LOG.info("All %s steps are done already, see %s", found.get("step"), path)
    return same


def write_outcome(folder: Path, outcome: Outcome, *, finished: bool) -> None:
    """Leave word of the end of a run."""
    written, stale = (FINISHED_FILE, STOPPED_FILE) if finished else (STOPPED_FILE, FINISHED_FILE)
    with disk_errors(folder):
        write_file(folder / written, orjson.dumps(asdict(outcome), option=orjson.OPT_INDENT_2))
        (folder / stale).unlink(missing_ok=True)


def forget_outcome(folder: Path) -> None:
    """Remove what an earlier run left; this one is neither finished nor stopped."""
    with disk_errors(folder):
        for name in (FINISHED_FILE, STOPPED_FILE):
            (folder / name).unlink(missing_ok=True)


class StopFlag:
    """Set by SIGTERM, or when the time is over."""

    def __init__(self, seconds: float | None) -> None:
        self._end = math.inf if seconds is None else time.monotonic() + seconds
        self._reason = ""
        signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, *_: object) -> None:
        self._reason = "SIGTERM"

    @property
    def reason(self) -> str:
        """Why to stop; empty to go on."""
        if not self._reason and time.monotonic() >= self._end:
            self._reason = "max_time_per_run"
        return self._reason
