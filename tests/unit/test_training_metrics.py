"""The log of a training run: resumed without gaps or repeats, shown now and then, drawn at the end."""

import json
import logging
import math
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_skills.training import loss_curve, metrics_sinks
from nemo_skills.training.loss_curve import _ticks
from nemo_skills.training.metrics_log import (
    METRICS_FILE,
    ConsoleSink,
    LogOptions,
    MetricsLog,
    WandbOptions,
    read_metrics,
)


def run(folder: Path, steps: range, options: LogOptions) -> MetricsLog:
    log = MetricsLog.open(folder, options)
    for step in steps:
        log.log(step, {"loss": 1 / step, "lr": 1e-4})
    return log


@pytest.mark.parametrize("torn", [b"", b'{"step": 51, "lo', b'{"step": 51, "loss": 1}', b"\x00" * 9])
def test_a_resumed_log_has_every_step_once(tmp_path: Path, torn: bytes) -> None:
    run(tmp_path, range(1, 51), LogOptions())  # killed: never closed
    with (tmp_path / METRICS_FILE).open("ab") as file:
        file.write(torn)
    log = run(tmp_path, range(41, 61), LogOptions(resume_step=40))
    log.log(60, {"val_loss": math.nan})
    log.close()
    entries = read_metrics(tmp_path / METRICS_FILE)
    assert [entry.step for entry in entries] == [*range(1, 61), 60]
    assert entries[44].values == {"loss": 1 / 45, "lr": 1e-4}
    assert entries[-1].values == {}  # what is no number does not count as one


def test_a_new_run_begins_anew(tmp_path: Path) -> None:
    run(tmp_path, range(1, 5), LogOptions()).close()
    run(tmp_path, range(1, 3), LogOptions()).close()
    assert [entry.step for entry in read_metrics(tmp_path / METRICS_FILE)] == [1, 2]


def test_the_console_shows_some_steps_and_the_time_left(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.INFO)
    log = run(tmp_path, range(1, 101), LogOptions(total_steps=100, console_interval_s=1e9))
    log.log(100, {"val_loss": 0.5})
    shown = [message.split("  ")[0] for message in caplog.messages]
    assert shown == ["step 1/100", "step 100/100", "step 100/100"]
    console = ConsoleSink(LogOptions(total_steps=100, resume_step=20))
    values = {"loss": 2.0, "tokens_per_second": 12345.6, "mfu": 0.412, "other": 1}
    line = console.line(30, values, console._start[1] + 100.0)  # ten steps took 100 s
    assert line == "step 30/100  loss 2.0000  12,346 tokens/s  MFU 41.2%  0:11:40 left"


class Broken:
    def log(self, step: int, values: object) -> None:
        raise ConnectionError("no network")

    def close(self) -> None:
        raise ConnectionError("no network")


def test_a_board_that_fails_does_not_end_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = MetricsLog(tmp_path, (Broken(),))
    log.log(1, {"loss": 1.0})
    log.log(2, {"loss": 1.0})
    log.close()
    assert [m for m in caplog.messages if "not used any more" in m] == [
        "Broken fails and is not used any more: no network"
    ]


def test_a_board_that_cannot_be_reached_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise TimeoutError("no answer")

    monkeypatch.setattr(metrics_sinks, "WandbSink", refuse)
    run(tmp_path, range(1, 3), LogOptions(wandb=WandbOptions(project="p"))).close()
    assert "W&B cannot be used: no answer" in caplog.messages
    assert [entry.step for entry in read_metrics(tmp_path / METRICS_FILE)] == [1, 2]


def test_the_curve_is_a_page_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "a <b> & c"
    log = run(folder, range(1, 5001), LogOptions())
    log.log(5000, {"val_loss": 0.25})
    log.close()
    page = (folder / loss_curve.HTML_FILE).read_text()
    assert "http" not in page and "a &lt;b&gt; &amp; c" in page
    svg = ElementTree.fromstring(page[page.index("<svg") : page.index("</body>")])
    points = [line.attrib["points"].split() for line in svg.iter("polyline")]
    assert [len(p) for p in points] == [1667, 1]  # means of three neighbours; one value
    xs = [float(point.split(",")[0]) for point in points[0]]
    assert xs == sorted(xs) and xs[-1] == 880  # the right edge


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_are_few_round_and_inside(low: float, width: float) -> None:
    ticks = _ticks(low, low + width)
    assert 3 <= len(ticks) <= 11
    assert all(low - width * 1e-3 <= tick <= low + width * 1.001 for tick in ticks)


def test_jobs_of_a_chain_go_on_with_the_same_wandb_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    options = WandbOptions(project="p", name="n", group="g")
    for first in (0, 2):
        log = run(tmp_path, range(first + 1, first + 3), LogOptions(resume_step=first, wandb=options))
        log.close()
    run_id = (tmp_path / metrics_sinks.ID_FILE).read_text()
    kept = list((tmp_path / "wandb").glob(f"offline-run-*/run-{run_id}.wandb"))
    assert len(kept) == 2


def test_tensorboard_hides_what_was_logged_after_the_checkpoint(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(tmp_path, range(1, 6), LogOptions(tensorboard=True)).close()
    run(tmp_path, range(4, 7), LogOptions(tensorboard=True, resume_step=3)).close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("loss")
    assert [(event.step, event.value) for event in events] == [
        (step, pytest.approx(1 / step)) for step in range(1, 7)
    ]


def test_the_file_is_plain_json(tmp_path: Path) -> None:
    run(tmp_path, range(1, 2), LogOptions())
    (line,) = (tmp_path / METRICS_FILE).read_text().splitlines()
    row = json.loads(line)
    assert row.pop("time") > 1e9
    assert row == {"step": 1, "loss": 1.0, "lr": 1e-4}
