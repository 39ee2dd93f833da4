"""How far a run is: a bar on a terminal, a line now and then in a log file."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from nemo_skills.core.log import get_logger

_log = get_logger(__name__)
_LINE_S = 30.0


class Progress(Protocol):
    """Is told what was done."""

    def advance(self, rows: int, share: float) -> None:
        """So many rows more, and this share of the stage altogether."""


class _Lines:
    def __init__(self, title: str) -> None:
        self._title = title
        self._rows = 0
        self._started = time.monotonic()
        self._next = self._started + _LINE_S

    def advance(self, rows: int, share: float) -> None:
        self._rows += rows
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _LINE_S
            speed = self._rows / (now - self._started)
            _log.info("%s: %d rows (%.0f%%), %.0f rows/s", self._title, self._rows, 100 * share, speed)


@contextmanager
def progress(title: str) -> Iterator[Progress]:
    """Show the progress of a stage while the block lasts."""
    width = os.environ.get("NS_TERMINAL_WIDTH", "")
    if not (width.isdigit() or sys.stderr.isatty()):
        yield _Lines(title)
        return
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True, width=int(width) if width.isdigit() else None, force_terminal=True)
    columns = (
        *(TextColumn("{task.description}"), BarColumn(), TaskProgressColumn()),
        *(TextColumn("{task.fields[rows]} rows"), TimeRemainingColumn()),
    )
    # no thread of its own: the workers are forked while it is shown
    with Bar(*columns, console=console, auto_refresh=False) as bar:
        yield _BarProgress(bar, title)


class _BarProgress:
    def __init__(self, bar: "object", title: str) -> None:
        from rich.progress import Progress as Bar

        assert isinstance(bar, Bar)
        self._bar = bar
        self._rows = 0
        self._task = bar.add_task(title, total=1.0, rows=0)

    def advance(self, rows: int, share: float) -> None:
        self._rows += rows
        self._bar.update(self._task, completed=share, rows=f"{self._rows:,}")
        self._bar.refresh()
