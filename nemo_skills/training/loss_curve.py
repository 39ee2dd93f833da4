"""The loss curve of a run as a page that needs nothing but a browser, and as an image where matplotlib is."""

import html
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from nemo_skills.core.jsonl import disk_errors, write_file

if TYPE_CHECKING:
    from nemo_skills.training.metrics_log import Entry

HTML_FILE = "training.html"
IMAGE_FILE = "training.png"
_COLOURS = {"loss": "#1f77b4", "val_loss": "#d62728"}
_WIDTH, _HEIGHT, _LEFT, _TOP, _RIGHT, _BOTTOM = 900, 420, 70, 20, 20, 50
_POINTS = 2000


class Curve(NamedTuple):
    """One figure over the steps."""

    name: str
    points: list[tuple[int, float]]


def write_curve(folder: Path, entries: Sequence["Entry"]) -> None:
    """Write the curves of `loss` and `val_loss` to a folder; nothing where there are none.

    Raises:
        UserError: the folder cannot be written.
    """
    curves = [Curve(name, _thin(entries, name)) for name in _COLOURS]
    curves = [curve for curve in curves if curve.points]
    if not curves:
        return
    with disk_errors(folder / HTML_FILE):
        write_file(folder / HTML_FILE, _page(folder, curves).encode())
        _write_image(folder / IMAGE_FILE, curves)


def _thin(entries: Sequence["Entry"], name: str) -> list[tuple[int, float]]:
    """Return the points of one figure; of a long run means of neighbours, so that pages stay small."""
    points = [(e.step, e.values[name]) for e in entries if math.isfinite(e.values.get(name, math.nan))]
    size = math.ceil(len(points) / _POINTS) or 1
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]


def _page(folder: Path, curves: Sequence[Curve]) -> str:
    title = html.escape(f"Training loss: {folder.absolute().name}")
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f'<body style="font-family:sans-serif"><h1>{title}</h1>{_svg(curves)}</body></html>\n'
    )


def _svg(curves: Sequence[Curve]) -> str:
    steps = [step for curve in curves for step, _ in curve.points]
    values = [value for curve in curves for _, value in curve.points]
    left, right = min(steps), max(*steps, min(steps) + 1)
    low, high = min(0.0, *values), max(*values, min(values) + 1e-9)

    def x(step: float) -> float:
        return _LEFT + (step - left) / (right - left) * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _TOP + (high - value) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" font-size="13">']
    for tick in _ticks(low, high):
        parts.append(f'<path d="M{_LEFT} {y(tick):.1f}H{_WIDTH - _RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in _ticks(left, right):
        label = f'<text x="{x(tick):.1f}" y="{_HEIGHT - _BOTTOM + 20}" text-anchor="middle">{tick:g}</text>'
        parts.append(label)
    parts.append(f'<text x="{_WIDTH / 2:.0f}" y="{_HEIGHT - 8}" text-anchor="middle">step</text>')
    for row, curve in enumerate(curves):
        line = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in curve.points)
        colour = _COLOURS[curve.name]
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{line}"/>')
        last = f"{curve.name.replace('_', ' ')}: last {curve.points[-1][1]:.4g}"
        at = f'x="{_WIDTH - _RIGHT - 8}" y="{_TOP + 18 + 18 * row}"'
        parts.append(f'<text {at} text-anchor="end" fill="{colour}">{last}</text>')
    return "".join([*parts, "</svg>"])


def _ticks(low: float, high: float) -> list[float]:
    """Return round numbers that divide a range into four to ten parts."""
    step = 10.0 ** math.floor(math.log10((high - low) / 4))
    step *= next(factor for factor in (5, 2, 1) if (high - low) / (step * factor) >= 4)
    first = math.ceil(low / step - 1e-9)
    return [round(step * i, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _write_image(path: Path, curves: Sequence[Curve]) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="loss")
    for curve in curves:
        axes.plot(*zip(*curve.points, strict=True), label=curve.name, color=_COLOURS[curve.name])
    axes.legend()
    axes.grid(alpha=0.3)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    write_file(path, image.getvalue())
