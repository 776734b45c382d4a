"""Line charts with error bars as SVG, coloured by the page's style sheet: `.s0`, `.s1`, .. are the series."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

__all__ = ["SHAPES", "Point", "Series", "chart", "marker", "scatter"]

WIDTH, HEIGHT = 560, 340
LEFT, RIGHT, TOP, BOTTOM = 64, 14, 12, 46
SHAPES = 6  # of markers; with 8 colours 24 series differ


class Point(NamedTuple):
    """A point, with the error of y (NaN for none) and what is shown of it."""

    x: float
    y: float
    error: float
    text: str


@dataclass(frozen=True)
class Series:
    """The points of a line, and its number, which decides on colour and marker."""

    number: int
    points: Sequence[Point]


class _Axis:
    """An axis, logarithmic where all values are positive."""

    def __init__(self, values: Sequence[float], start: float, end: float, ticks: Sequence[float] = ()) -> None:
        self.log = min(values) > 0
        low, high = (self._of(value) for value in (min(values), max(values)))
        margin = 0.06 * (high - low) or 0.2 * (1 if self.log else abs(high) or 1)
        self.low, self.high, self.start, self.end = low - margin, high + margin, start, end
        self.ticks = [tick for tick in (ticks or self._round()) if self.low <= self._of(tick) <= self.high]

    def _of(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def __call__(self, value: float) -> float:
        if self.log and value <= 0:
            return self.start
        share = (self._of(value) - self.low) / (self.high - self.low)
        return self.start + min(1.0, max(0.0, share)) * (self.end - self.start)

    def _round(self) -> list[float]:
        if not self.log:
            step = 10 ** math.floor(math.log10(self.high - self.low))
            step = next(s for s in (step / 5, step / 2, step, 2 * step) if (self.high - self.low) / s <= 6)
            return [i * step for i in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]
        span = self.high - self.low
        digits = (1,) if span > 3 else (1, 3) if span > 1.5 else (1, 2, 5) if span > 0.5 else range(1, 10)
        decades = range(math.floor(self.low), math.ceil(self.high) + 1)
        return [digit * 10.0**decade for decade in decades for digit in digits]


def chart(
    series: Sequence[Series], x_title: str, y_title: str, front: Sequence[Point] = (), ticks: Sequence[float] = ()
) -> str:
    """The SVG of a chart; an empty text if there is nothing to draw.

    Args:
        front: points that are ringed and joined by a dashed line.
        ticks: of x; chosen here if there are none.
    """
    points = [point for one in series for point in one.points]
    if not points:
        return ""
    x = _Axis([point.x for point in points], LEFT, WIDTH - RIGHT, ticks)
    heights = [point.y for point in points]
    bars = [point.y + sign * point.error for point in points if point.error > 0 for sign in (-1, 1)]
    y = _Axis([*heights, *(bar for bar in bars if bar > 0 or min(heights) <= 0)], HEIGHT - BOTTOM, TOP)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(f"{y_title} against {x_title}")}">',
        *(_tick(x(tick), HEIGHT - BOTTOM, x(tick), TOP, _text(tick), "x") for tick in x.ticks),
        *(_tick(LEFT, y(tick), WIDTH - RIGHT, y(tick), _text(tick), "y") for tick in y.ticks),
        f'<text class="title" x="{(LEFT + WIDTH - RIGHT) / 2:.1f}" y="{HEIGHT - 8}" text-anchor="middle">'
        f"{escape(x_title)}</text>",
        f'<text class="title" transform="translate(13 {(TOP + HEIGHT - BOTTOM) / 2:.1f}) rotate(-90)" '
        f'text-anchor="middle">{escape(y_title)}</text>',
    ]
    if front:
        parts.append(f'<polyline class="front" points="{_line(front, x, y)}"/>')
        parts += [f'<circle class="front" cx="{x(p.x):.1f}" cy="{y(p.y):.1f}" r="8"/>' for p in front]
    for one in series:
        parts.append(f'<g class="series s{one.number % 8}" data-series="{one.number}">')
        parts.append(f'<polyline points="{_line(one.points, x, y)}"/>')
        for point in one.points:
            parts.append(f"<g><title>{escape(point.text)}</title>")
            if point.error > 0:
                low, high = y(point.y - point.error), y(point.y + point.error)
                parts.append(f'<path class="bar" d="M{x(point.x):.1f} {low:.1f}V{high:.1f}"/>')
            parts.append(f'<path class="dot" d="{marker(one.number, x(point.x), y(point.y))}"/></g>')
        parts.append("</g>")
    return "\n".join([*parts, "</svg>"])


def marker(number: int, x: float, y: float, r: float = 4.2) -> str:
    """The outline of a series' marker around (x, y)."""
    shape = number % SHAPES
    if shape == 0:
        return f"M{x - r:.1f} {y:.1f}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0Z"
    corners = {1: 4, 2: 3, 3: 4, 4: 3, 5: 5}[shape]
    turn = {1: math.pi / 4, 2: -math.pi / 2, 3: 0.0, 4: math.pi / 2, 5: -math.pi / 2}[shape]
    around = [turn + 2 * math.pi * i / corners for i in range(corners)]
    return "M" + "L".join(f"{x + 1.2 * r * math.cos(a):.1f} {y + 1.2 * r * math.sin(a):.1f}" for a in around) + "Z"


def scatter(points: Sequence[tuple[float, float]], limit: float, side: int = 96) -> str:
    """The SVG of points in a square of half width `limit` around the origin."""
    dots = "".join(
        f'<circle cx="{side / 2 * (1 + px / limit):.1f}" cy="{side / 2 * (1 - py / limit):.1f}" r="1.6"/>'
        for px, py in points
        if math.isfinite(px) and math.isfinite(py)
    )
    return f'<svg class="scatter" viewBox="0 0 {side} {side}" width="{side}" aria-hidden="true">{dots}</svg>'


def _line(points: Sequence[Point], x: _Axis, y: _Axis) -> str:
    return " ".join(f"{x(point.x):.1f},{y(point.y):.1f}" for point in points)


def _tick(x1: float, y1: float, x2: float, y2: float, text: str, axis: str) -> str:
    place = f'x="{x1:.1f}" y="{y1 + 16:.1f}" text-anchor="middle"'
    if axis == "y":
        place = f'x="{x1 - 6:.1f}" y="{y1 + 4:.1f}" text-anchor="end"'
    line = f'<line class="grid" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'
    return f"{line}<text {place}>{text}</text>"


def _text(value: float) -> str:
    if value and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.4g}"
