"""How far a run is: a bar on a terminal, a line now and then in a log file."""

import asyncio
import logging
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

from nemo_skills.core.log import get_logger
from nemo_skills.inference.endpoints import ServerStatus

if TYPE_CHECKING:
    from rich.progress import Progress

_BAR_S = 0.25
_FIRST_LINE_S = 5.0
_LINE_S = 30.0
_WINDOW = 60
_log = get_logger(__name__)


@dataclass(kw_only=True)
class Counts:
    """What a run has done so far."""

    total: int
    resumed: int = 0
    """Rows that earlier runs had finished."""
    finished: int = 0
    failed: int = 0
    tokens: int = 0
    """Generated ones."""
    prompt_tokens: int = 0
    retries: int = 0
    last_error: str = ""
    """Why the last request was tried again."""
    in_flight: int = 0
    limit: int = 0
    """How many requests may be in flight now."""
    resting: int = 0
    """Rows that wait for their next attempt."""
    servers: list[ServerStatus] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)


class Display(Protocol):
    """Shows counts to somebody."""

    interval: float

    def show(self, counts: Counts) -> None:
        """Show the counts as they are now."""

    def close(self) -> None:
        """Leave a clean screen behind."""


class Speed(NamedTuple):
    """What happens in a second."""

    rows: float
    tokens: float
    prompt_tokens: float
    left_s: float | None
    """Seconds to the end, if they can be told."""


class Rates:
    """Speed over the last minute or so, which says more about the rest than the mean since the start."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int, int, int]] = deque(maxlen=_WINDOW)

    def update(self, counts: Counts) -> Speed:
        """Take the counts into account."""
        now, answered = time.monotonic(), counts.finished + counts.failed
        if not self._samples:
            self._samples.append((counts.started, 0, 0, 0))
        then, answered_then, tokens_then, prompts_then = self._samples[0]
        self._samples.append((now, answered, counts.tokens, counts.prompt_tokens))
        seconds = max(now - then, 1e-6)
        rows = (answered - answered_then) / seconds
        left = counts.total - counts.resumed - answered
        return Speed(
            rows,
            (counts.tokens - tokens_then) / seconds,
            (counts.prompt_tokens - prompts_then) / seconds,
            left / rows if rows > 0 else None,
        )


class LogDisplay:
    """Lines for a log file."""

    interval = 1.0

    def __init__(self) -> None:
        self._rates = Rates()
        self._next = time.monotonic() + _FIRST_LINE_S
        self._retries = 0

    def show(self, counts: Counts) -> None:
        """Log a line when it is time for one."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _LINE_S
        rows, tokens, _, left = self._rates.update(counts)
        done = counts.resumed + counts.finished
        failed = f", {counts.failed} failed" if counts.failed else ""
        _log.info(
            "%d of %d rows (%.0f%%)%s, %.1f rows/s, %.0f tokens/s, %s left",
            *(done, counts.total, 100 * done / max(counts.total, 1), failed, rows, tokens, _duration(left)),
        )
        if counts.retries > self._retries:
            fresh, self._retries = counts.retries - self._retries, counts.retries
            _log.warning(
                "%d requests had to be tried again, the last one after: %s", fresh, counts.last_error
            )

    def close(self) -> None:
        """Nothing to clean up."""


class BarDisplay:
    """A bar at the bottom of a terminal."""

    interval = _BAR_S

    def __init__(self, width: int | None) -> None:
        self._rates = Rates()
        self._progress = _rich_progress(width)
        self._task = self._progress.add_task("", total=None, numbers="")
        self._progress.start()
        # log lines must go through rich, which keeps the bar below them
        self._handlers = [
            handler
            for handler in logging.getLogger().handlers
            if isinstance(handler, logging.StreamHandler) and handler.stream in (sys.__stderr__,)
        ]
        for handler in self._handlers:
            handler.setStream(sys.stderr)

    def show(self, counts: Counts) -> None:
        """Redraw."""
        rows, tokens, _, left = self._rates.update(counts)
        failed = f" [red]{counts.failed} failed[/red]" if counts.failed else ""
        retries = f" [yellow]{counts.retries} retries[/yellow]" if counts.retries else ""
        numbers = f"{rows:.1f} rows/s · {tokens:.0f} tokens/s · {_duration(left)} left{failed}{retries}"
        done = counts.resumed + counts.finished
        self._progress.update(self._task, total=counts.total, completed=done, numbers=numbers)

    def close(self) -> None:
        """Leave the last state of the bar on the screen."""
        for handler in self._handlers:
            handler.setStream(sys.__stderr__)
        self._progress.stop()


def make_display() -> Display:
    """Return a bar where there is a terminal, directly or through the launcher; else log lines."""
    width = os.environ.get("NS_TERMINAL_WIDTH", "")
    if width.isdigit() or sys.stderr.isatty():
        return BarDisplay(int(width) if width.isdigit() else None)
    return LogDisplay()


async def keep_showing(displays: Sequence[Display], current: Callable[[], Counts]) -> None:
    """Show the counts on each display in its own interval, until cancelled."""
    next_times = [time.monotonic() + display.interval for display in displays]
    while True:
        await asyncio.sleep(max(0.0, min(next_times) - time.monotonic()))
        counts, now = current(), time.monotonic()
        for i, display in enumerate(displays):
            if next_times[i] <= now:
                display.show(counts)
                next_times[i] = now + display.interval


def _rich_progress(width: int | None) -> "Progress":
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(stderr=True, width=width, force_terminal=True)
    return Progress(
        MofNCompleteColumn(), BarColumn(), TextColumn("{task.fields[numbers]}"),
        console=console, auto_refresh=False, redirect_stdout=False,
    )  # fmt: skip


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "unknown time"
    whole = int(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}"
