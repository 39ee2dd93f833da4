"""Where the figures of a training run go: `metrics.jsonl`, the console, and if asked TensorBoard and W&B."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, Self

import orjson

from nemo_skills.core.errors import UserError
from nemo_skills.core.jsonl import disk_errors, write_file
from nemo_skills.core.log import get_logger
from nemo_skills.training.loss_curve import write_curve

LOG = get_logger(__name__)

METRICS_FILE = "metrics.jsonl"
OnMetrics = Callable[[int, Mapping[str, float]], None]
"""Takes a step and its figures."""


@dataclass(frozen=True, kw_only=True)
class WandbOptions:
    """Weights & Biases, which takes its key from `WANDB_API_KEY` and without one keeps the run on disk."""

    project: str
    name: str | None = None
    group: str | None = None


@dataclass(frozen=True, kw_only=True)
class LogOptions:
    """What is logged besides `metrics.jsonl`, which always is."""

    total_steps: int | None = None
    """For the time left on the console."""
    resume_step: int = 0
    """Step of the checkpoint that the run goes on from; what was logged after it is forgotten."""
    console_interval_s: float = 10.0
    """A line on the console at most this often, except for validation and the last step."""
    tensorboard: bool = False
    wandb: WandbOptions | None = None
    config: Mapping[str, object] = field(default_factory=dict)
    """The run's configuration, which W&B shows."""
    on_metrics: OnMetrics | None = None
    """Called with all that is logged."""


class Sink(Protocol):
    """A place for figures."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take the figures of one step."""

    def close(self) -> None:
        """Write what is pending."""


class MetricsLog:
    """The figures of one run; only one process of it, rank 0, may have one. Use `MetricsLog.open`.

    The console shows those in `_SHOWN`; all are logged. Figures of one step may come in several calls.
    """

    def __init__(self, folder: Path, sinks: tuple[Sink, ...]) -> None:
        self._folder = folder
        self._sinks = sinks
        self._broken: set[int] = set()

    @classmethod
    def open(cls, folder: str | Path, options: LogOptions) -> Self:
        """Open or go on with the log in a folder, which is made if need be.

        Raises:
            UserError: the folder cannot be written, or a package for TensorBoard or W&B is missing.
        """
        folder = Path(folder)
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        sinks: list[Sink] = [
            _JsonlSink(folder / METRICS_FILE, options.resume_step),
            ConsoleSink(options),
        ]
        if options.on_metrics:
            sinks.append(_FunctionSink(options.on_metrics))
        return cls(folder, (*sinks, *_boards(folder, options)))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log figures of one step, numbered from 1; 0 is before the first one.

        Raises:
            UserError: `metrics.jsonl` cannot be written. Trouble with the other places is only a warning.
        """
        for index, sink in enumerate(self._sinks):
            if index in self._broken:
                continue
            try:
                sink.log(step, values)
            except UserError:
                raise
            except Exception as error:  # a board that is down must not end a run of days
                LOG.warning("%s fails and is not used any more: %s", type(sink).__name__, error)
                self._broken.add(index)

    def close(self) -> None:
        """End the log and draw the loss curve, `training.html`, and `training.png` where matplotlib is."""
        for sink in self._sinks:
            try:
                sink.close()
            except Exception as error:
                LOG.warning("%s could not be closed: %s", type(sink).__name__, error)
        with contextlib.suppress(UserError):
            write_curve(self._folder, read_metrics(self._folder / METRICS_FILE))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _FunctionSink:
    def __init__(self, function: OnMetrics) -> None:
        self._function = function

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._function(step, values)

    def close(self) -> None:
        """Nothing is pending."""


def _boards(folder: Path, options: LogOptions) -> Iterator[Sink]:
    """Open what needs a package of its own; a board that cannot be reached is left out."""
    from nemo_skills.training import metrics_sinks

    makers: dict[str, Callable[[], Sink]] = {}
    if options.tensorboard:
        makers["TensorBoard"] = lambda: metrics_sinks.TensorBoardSink(
            folder / "tensorboard", options.resume_step
        )
    if wandb := options.wandb:
        makers["W&B"] = lambda: metrics_sinks.WandbSink(folder, wandb, options.config)
    for name, make in makers.items():
        try:
            yield make()
        except UserError:
            raise
        except Exception as error:  # a job that has waited for days in a queue must not fail for this
            LOG.warning("%s cannot be used: %s", name, error)


@dataclass(frozen=True)
class Entry:
    """One line of `metrics.jsonl`."""

    step: int
    values: Mapping[str, float]


def read_metrics(path: Path) -> list[Entry]:
    """Read a log; a line that was cut off ends it, and figures that were not numbers are left out."""
    entries = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        row = _parse(line)
        if row is None:
            break
        values = {k: v for k, v in row.items() if k not in ("step", "time") and isinstance(v, int | float)}
        entries.append(Entry(int(row["step"]), values))
    return entries


def _parse(line: bytes) -> dict[str, float] | None:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


class _JsonlSink:
    """Appends to a file, a whole line at a time."""

    def __init__(self, path: Path, resume_step: int) -> None:
        self._path = path
        with disk_errors(path):
            _cut(path, resume_step)
            self._file = path.open("ab", buffering=0)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        # JSON knows no NaN: such a figure becomes null
        line = orjson.dumps({"step": step, "time": round(time.time(), 3), **values})
        with disk_errors(self._path):
            self._file.write(line + b"\n")

    def close(self) -> None:
        self._file.close()


def _cut(path: Path, resume_step: int) -> None:
    """Drop a torn tail, and the steps after the one that the run goes on from: they come again."""
    if not path.exists():
        return
    data = path.read_bytes()
    kept = []
    for line in data.splitlines(keepends=True):
        row = _parse(line)
        if row is None or not line.endswith(b"\n"):
            break
        if row["step"] <= resume_step:
            kept.append(line)
    if (text := b"".join(kept)) != data:
        write_file(path, text)


_SHOWN = {
    "loss": "loss {:.4f}",
    "val_loss": "val loss {:.4f}",
    "accuracy": "accuracy {:.1%}",
    "val_accuracy": "val accuracy {:.1%}",
    "rewards_margin": "margin {:.3g}",
    "val_rewards_margin": "val margin {:.3g}",
    "grad_norm": "grad norm {:.3g}",
    "lr": "lr {:.3g}",
    "tokens_per_second": "{:,.0f} tokens/s",
    "mfu": "MFU {:.1%}",
}


class ConsoleSink:
    """A line of the log now and then."""

    def __init__(self, options: LogOptions) -> None:
        self._total = options.total_steps
        self._interval = options.console_interval_s
        self._shown_at = -math.inf
        self._start: tuple[int, float] = (options.resume_step, time.monotonic())

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Show the figures, unless the last line was shown a moment ago."""
        now = time.monotonic()
        always = step == self._total or any(name.startswith("val") for name in values)
        if not always and now < self._shown_at + self._interval:
            return
        if "loss" in values:
            self._shown_at = now
        LOG.info("%s", self.line(step, values, now))

    def line(self, step: int, values: Mapping[str, float], now: float) -> str:
        """Return the line of one step at a time of the monotonic clock."""
        of = f"/{self._total}" if self._total else ""
        parts = [f"step {step}{of}", *(text.format(values[k]) for k, text in _SHOWN.items() if k in values)]
        first, since = self._start
        if self._total and first < step < self._total:
            left = round((now - since) / (step - first) * (self._total - step))
            parts.append(f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d} left")
        return "  ".join(parts)

    def close(self) -> None:
        """Nothing is pending."""
