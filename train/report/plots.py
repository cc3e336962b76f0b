"""Plots as inline SVG, coloured by the page's own style sheet, so that they follow light and dark.

plots.svg draws what is worked out here. Coordinates are those of a phone's width: larger screens
enlarge the picture with its letters.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from train.measure.significance import Estimate

WIDTH, HEIGHT = 420, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 8, 26, 46
_PLOT_WIDTH, _PLOT_HEIGHT = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM

# Series differ in shape as well as in colour.
MARKERS = (
    Markup('<circle r="3.6"/>'),
    Markup('<rect x="-3.3" y="-3.3" width="6.6" height="6.6"/>'),
    Markup('<path d="M0-4.4 4.2 3.4-4.2 3.4Z"/>'),
    Markup('<path d="M0-4.8 4.8 0 0 4.8-4.8 0Z"/>'),
    Markup('<path d="M0 4.4 4.2-3.4-4.2-3.4Z"/>'),
    Markup('<path d="M-4-1.4h2.6V-4h2.8v2.6H4v2.8H1.4V4h-2.8V1.4H-4Z"/>'),
)
MOST_SERIES = len(MARKERS)

TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_DRAW = (
    TEMPLATES.get_template(
        "plots.svg",
        globals={
            "markers": MARKERS,
            "width": WIDTH,
            "height": HEIGHT,
            "left": _LEFT,
            "right": _RIGHT,
        },
    )
    .make_module()
    .__dict__
)


class Series(NamedTuple):
    """A model's figures along the horizontal axis; NaN leaves a gap."""

    name: str
    colour: int
    """Which of MARKERS, and of the style sheet's colours."""
    values: list[Estimate]
    ringed: int | None = None
    """Row of `values` that stands out."""


def decimals(value: float) -> str:
    """Four decimals as this project writes shares: .0123, 1.0000."""
    if math.isnan(value):
        return "\N{EN DASH}"
    text = f"{abs(value):.4f}"
    sign = "\N{MINUS SIGN}" if value < 0 and float(text) else ""
    return sign + (text[1:] if text.startswith("0") else text)


def swatch(colour: int) -> Markup:
    """A series' marker for the legend."""
    return Markup(_DRAW["swatch"](colour))  # noqa: S704 - escaped by the template


def bar(value: Estimate, largest: float, best: bool) -> Markup:
    """A table cell's bar from 0 to the figure, its interval, if any, across the end."""
    ends = (100 * v / largest if largest > 0 and not math.isnan(v) else 0 for v in value)
    return Markup(_DRAW["bar"](*ends, best))  # noqa: S704 - escaped by the template


def line_plot(
    title: str,
    axis: str,
    labels: Sequence[str],
    series: Sequence[Series],
    notes: Sequence[str] = (),
    *,
    connect: bool = True,
) -> Markup:
    """Series over `labels` with their intervals; `notes` stand small below the labels."""
    shown = [v for s in series for e in s.values for v in e if not math.isnan(v)]
    low, high, step = _axis(shown)
    x_step = _PLOT_WIDTH / len(labels)

    def y(value: float) -> float:
        return _TOP + _PLOT_HEIGHT * (high - value) / (high - low)

    n_steps = round((high - low) / step)
    ticks = [(y(tick), _tick(tick, step)) for tick in (low + n * step for n in range(n_steps + 1))]
    centres = [_LEFT + (n + 0.5) * x_step for n in range(len(labels))]
    every = math.ceil(len(labels) / 12)  # more labels than that run into each other
    bottom = HEIGHT - _BOTTOM
    texts = [("tick", centres[n], bottom + 15, labels[n]) for n in range(0, len(labels), every)]
    texts += [("note", x, bottom + 27, note) for x, note in zip(centres, notes, strict=False)]
    texts.append(("axis", _LEFT + _PLOT_WIDTH / 2, HEIGHT - 4, axis))
    # Beside each other, so that no interval hides another.
    spread = min(7.0, 0.7 * x_step / max(1, len(series))) if len(labels) <= 12 else 0.0
    lines = []
    for place, one in enumerate(series):
        shift, points = (place - (len(series) - 1) / 2) * spread, []
        for n, (value, least, most) in enumerate(one.values):
            if math.isnan(value):
                continue
            told, whisker = f"{one.name}, {labels[n]} {axis}: {decimals(value)}", None
            if not math.isnan(least):
                told += f" ({decimals(least)} to {decimals(most)})"
                whisker = y(least), y(most)
            points.append((centres[n] + shift, y(value), whisker, told, n == one.ringed))
        lines.append((one, points))
    drawn = _DRAW["line_plot"](title, axis, ticks, texts, lines, connect)
    return Markup(drawn)  # noqa: S704 - escaped by the template


def _axis(values: Sequence[float]) -> tuple[float, float, float]:
    """Ends and step of an axis that holds the values, in steps of 1, 2 or 5 times a power of 10."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    span = high - low if high > low else max(abs(high), 1.0)
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(f * power for f in (1, 2, 5, 10) if span / (f * power) <= 5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return first * step, max(last, first + 1) * step, step


def _tick(value: float, step: float) -> str:
    text = f"{value:.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"
    return text[1:] if text.startswith("0.") else text
