"""Line charts as SVG: axes with round numbers, a value for each point under the pointer, no script."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from markupsafe import Markup

WIDTH, HEIGHT = 460, 270
LEFT, RIGHT, TOP, BOTTOM = 68, 14, 12, 44
MOST_POINTS = 600
"""Points of a line; longer ones are thinned out evenly."""
MOST_LABELED = 60
"""Points of a line up to which each shows its value under the pointer."""
COLORS = 8
"""Colors of lines, with which they begin anew after the last."""


Values = Sequence[float] | NDArray[Any]


@dataclass(frozen=True)
class Line:
    """Values over x."""

    name: str
    x: Values
    y: Values

    @property
    def known(self) -> list[tuple[float, float]]:
        """The points that have a finite value, thinned out."""
        points = [(float(x), float(y)) for x, y in zip(self.x, self.y, strict=True) if math.isfinite(y)]
        return points[:: max(1, math.ceil(len(points) / MOST_POINTS))]


def chart(
    lines: Sequence[Line],
    x_name: str,
    y_name: str,
    *,
    logarithmic: bool = False,
    levels: Sequence[tuple[float, str]] = (),
    x_limits: tuple[float, float] | None = None,
) -> Markup:
    """Return a chart of some lines, with their legend below.

    logarithmic: for y, where all values are above zero. levels: horizontal lines, value and name.
    """
    from markupsafe import Markup

    drawn = [line for line in lines if line.known]
    every = [point for line in drawn for point in line.known]
    if not every:
        return Markup()
    logarithmic = logarithmic and all(y > 0 for _, y in every)
    xs, ys = [x for x, _ in every], [y for _, y in every] + [value for value, _ in levels]
    x_axis = Axis(*(x_limits or (min(xs), max(xs))), LEFT, WIDTH - RIGHT)
    y_axis = Axis(*_roomy(min(ys), max(ys), logarithmic), HEIGHT - BOTTOM, TOP, logarithmic)
    parts = [*_grid(x_axis, y_axis, x_name, y_name)]
    for value, name in levels:
        y = y_axis.at(value)
        parts.append(f'<path class="level" d="M{LEFT} {y}H{WIDTH - RIGHT}"/>')
        parts.append(Markup('<text class="level" x="{}" y="{}">{}</text>').format(WIDTH - RIGHT, y - 3, name))
    for number, line in enumerate(drawn):
        points = [(x_axis.at(x), y_axis.at(y)) for x, y in line.known]
        path = "".join(f"{'L' if i else 'M'}{x} {y}" for i, (x, y) in enumerate(points))
        parts.append(f'<path class="line s{number % COLORS}" d="{path}{"h0" if len(points) == 1 else ""}"/>')
        if len(points) <= MOST_LABELED:
            parts += [
                Markup(
                    '<circle class="s{}" cx="{}" cy="{}" r="6"><title>{}, {} {}: {}</title></circle>'
                ).format(number % COLORS, *place, line.name, x_name, short(x), short(y))
                for place, (x, y) in zip(points, line.known, strict=True)
            ]
    says = "; ".join(
        f"{line.name} from {short(line.known[0][1])} to {short(line.known[-1][1])}" for line in drawn
    )
    legend = Markup("").join(
        Markup('<span><i class="s{}"></i>{} <b>{}</b></span>').format(
            number % COLORS, line.name, short(line.known[-1][1])
        )
        for number, line in enumerate(drawn)
    )
    head = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
        WIDTH, HEIGHT, f"{y_name} over {x_name}: {says}"
    )
    return (
        head
        + Markup("").join(Markup(part) for part in parts)
        + Markup("</svg>")
        + Markup('<div class="legend">{}</div>').format(legend)
    )


@dataclass(frozen=True)
class Axis:
    """Where on the drawing values lie."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def at(self, value: float) -> float:
        """Return the place of a value, in units of the drawing."""
        low, high, x = self.low, self.high, value
        if self.logarithmic:
            low, high, x = math.log10(low), math.log10(high), math.log10(value)
        part = (x - low) / (high - low) if high > low else 0.5
        return round(self.start + part * (self.end - self.start), 1)

    def ticks(self, count: int) -> list[float]:
        """Return about so many round values."""
        if self.high <= self.low:
            return [self.low]
        if not self.logarithmic:
            return _round_values(self.low, self.high, count)
        lowest, highest = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        for steps in ((1,), (1, 2, 5), tuple(range(1, 10))):
            every = [step * 10.0**power for power in range(lowest, highest + 1) for step in steps]
            inside = [value for value in every if self.low * 0.999 <= value <= self.high * 1.001]
            if len(inside) >= 3:
                return inside[:: max(1, math.ceil(len(inside) / (count + 2)))]
        return _round_values(self.low, self.high, count)


def short(value: float) -> str:
    """Return a number in four digits."""
    return f"{value:.4g}".replace("e-0", "e-").replace("e+0", "e")


def _round_values(low: float, high: float, count: int) -> list[float]:
    """Return multiples of 1, 2 or 5 times a power of ten between two values."""
    raw = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(step * power for step in (1, 2, 5, 10) if step * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-6), math.floor(high / step + 1e-6)
    return [float(f"{number * step:.10g}") for number in range(first, last + 1)]


def _roomy(low: float, high: float, logarithmic: bool) -> tuple[float, float]:
    """Return limits a little beyond the values."""
    if logarithmic:
        margin = max((high / low) ** 0.06, 1.05)
        return low / margin, high * margin
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
    return low - margin, high + margin


def _grid(x_axis: Axis, y_axis: Axis, x_name: str, y_name: str) -> list[str]:
    """Return the grid with its numbers, and the names of the axes."""
    from markupsafe import escape

    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = [f'<path class="axis" d="M{LEFT} {bottom}H{right}"/>']
    for value in y_axis.ticks(5):
        y = y_axis.at(value)
        parts.append(f'<path class="grid" d="M{LEFT} {y}H{right}"/>')
        parts.append(f'<text class="y" x="{LEFT - 6}" y="{y + 4}">{short(value)}</text>')
    whole = all(float(value).is_integer() for value in (x_axis.low, x_axis.high))
    for value in x_axis.ticks(6):
        if value.is_integer() or not whole:
            x = x_axis.at(value)
            parts.append(f'<path class="tick" d="M{x} {bottom}v4"/>')
            parts.append(f'<text class="x" x="{x}" y="{bottom + 17}">{short(value)}</text>')
    middle = np.mean([TOP, bottom])
    parts.append(f'<text class="x name" x="{(LEFT + right) / 2}" y="{HEIGHT - 6}">{escape(x_name)}</text>')
    parts.append(
        f'<text class="x name" transform="translate(13 {middle}) rotate(-90)">{escape(y_name)}</text>'
    )
    return parts
