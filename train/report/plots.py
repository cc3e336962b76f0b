"""Plots as inline SVG, coloured by the page's own style sheet, so that they follow light and dark.

Coordinates are those of a phone's width: larger screens enlarge the picture with its letters.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

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
    return Markup(
        '<svg class="swatch" viewBox="-11 -6 22 12" aria-hidden="true"><g class="c{}">'
        '<path class="line" d="M-11 0h22"/><g class="dot">{}</g></g></svg>'
    ).format(colour, MARKERS[colour])


def bar(value: Estimate, largest: float, best: bool) -> Markup:
    """A table cell's bar from 0 to the figure, its interval, if any, across the end."""
    x, low, high = (100 * v / largest if largest > 0 and not math.isnan(v) else 0 for v in value)
    whisker = Markup("")
    if high > 0:
        line = Markup('<path d="M{0:.1f} 7H{1:.1f}M{0:.1f} 4v6M{1:.1f} 4v6"/>')
        whisker = line.format(low, high)
    return Markup(
        '<svg class="bar{}" viewBox="0 0 104 14" preserveAspectRatio="none" aria-hidden="true">'
        '<rect x="0" y="2" width="{:.1f}" height="10"/>{}</svg>'
    ).format(" best" if best else "", x, whisker)


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

    parts = [
        Markup('<svg class="plot" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
            WIDTH, HEIGHT, f"{title} by {axis}"
        ),
        Markup('<text class="title" x="0" y="14">{}</text>').format(title),
    ]
    for n in range(round((high - low) / step) + 1):
        tick = low + n * step
        parts.append(
            Markup(
                '<path class="grid" d="M{} {:.1f}H{}"/>'
                '<text class="tick" x="{}" y="{:.1f}" text-anchor="end">{}</text>'
            ).format(_LEFT, y(tick), WIDTH - _RIGHT, _LEFT - 6, y(tick) + 4, _tick(tick, step))
        )
    every = math.ceil(len(labels) / 12)  # more labels than that run into each other
    for n, label in enumerate(labels):
        centre = _LEFT + (n + 0.5) * x_step
        if n % every == 0:
            parts.append(_text("tick", centre, HEIGHT - _BOTTOM + 15, label))
        if notes:
            parts.append(_text("note", centre, HEIGHT - _BOTTOM + 27, notes[n]))
    parts.append(_text("axis", _LEFT + _PLOT_WIDTH / 2, HEIGHT - 4, axis))
    # Beside each other, so that no interval hides another.
    spread = min(7.0, 0.7 * x_step / max(1, len(series))) if len(labels) <= 12 else 0.0
    for place, one in enumerate(series):
        shift = _LEFT + (place - (len(series) - 1) / 2) * spread
        points = [
            (shift + (n + 0.5) * x_step, estimate, labels[n], n == one.ringed)
            for n, estimate in enumerate(one.values)
            if not math.isnan(estimate.value)
        ]
        parts.append(Markup('<g class="c{}">').format(one.colour))
        if connect:
            path = " ".join(f"{x:.1f},{y(estimate.value):.1f}" for x, estimate, _, _ in points)
            parts.append(Markup('<polyline class="line" points="{}"/>').format(path))
        for x, estimate, label, is_ringed in points:
            parts.append(_point(one, x, y, estimate, f"{label} {axis}", is_ringed))
        parts.append(Markup("</g>"))
    return Markup("").join([*parts, Markup("</svg>")])


def _point(
    series: Series,
    x: float,
    y: Callable[[float], float],
    estimate: Estimate,
    where: str,
    is_ringed: bool,
) -> Markup:
    value, low, high = estimate
    told = f"{series.name}, {where}: {decimals(value)}"
    whisker = ring = Markup("")
    if not math.isnan(low):
        told += f" ({decimals(low)} to {decimals(high)})"
        line = Markup('<path class="whisker" d="M{:.1f} {:.1f}V{:.1f}"/>')
        whisker = line.format(x, y(low), y(high))
    if is_ringed:
        ring = Markup('<circle class="ring" r="7.5"/>')
    return Markup(
        '{}<g class="dot" transform="translate({:.1f} {:.1f})">{}{}<title>{}</title></g>'
    ).format(whisker, x, y(value), ring, MARKERS[series.colour], told)


def _text(kind: str, x: float, y: int, text: str) -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="middle">{}</text>').format(
        kind, x, y, text
    )


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
