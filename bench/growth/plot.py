"""Lines with their spread as an SVG picture. Both axes are logarithmic: what is linear is a diagonal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

_WIDTH, _HEIGHT = 640, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 150, 34, 44
_COLORS = ("#3a86ff", "#e63946", "#06a77d", "#9b5de5", "#ff9f1c")
_STYLE = """\
text { font: 12px system-ui, sans-serif; fill: #444 }
.grid { stroke: #ddd; stroke-width: 1 }
.title { font-size: 14px; font-weight: 600 }
@media (prefers-color-scheme: dark) { text { fill: #ccc } .grid { stroke: #444 } }"""


class Point(NamedTuple):
    """What was measured at `x`: the median of the rounds, the least and the most."""

    x: float
    median: float
    least: float
    most: float


def draw(title: str, x_label: str, y_label: str, series: Mapping[str, Sequence[Point]]) -> str:
    """The picture, as the text of an SVG file. All values are positive."""
    points = [point for line in series.values() for point in line]
    x_axis = _Axis([point.x for point in points], _LEFT, _WIDTH - _RIGHT)
    y_axis = _Axis([y for point in points for y in point[1:]], _HEIGHT - _BOTTOM, _TOP)
    shapes = [
        f'<text class="title" x="{_LEFT}" y="18">{escape(title)}</text>',
        f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 8}" text-anchor="middle">'
        f"{escape(x_label)}</text>",
        f'<text x="{_LEFT - 6}" y="{_TOP - 8}" text-anchor="end">{escape(y_label)}</text>',
    ]
    for value, at in x_axis.marks:
        shapes.append(f'<path class="grid" d="M{at:.1f} {_TOP}V{_HEIGHT - _BOTTOM}"/>')
        shapes.append(
            f'<text x="{at:.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{_told(value)}</text>'
        )
    for value, at in y_axis.marks:
        shapes.append(f'<path class="grid" d="M{_LEFT} {at:.1f}H{_WIDTH - _RIGHT}"/>')
        shapes.append(f'<text x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{_told(value)}</text>')
    for number, (name, line) in enumerate(series.items()):
        color = _COLORS[number % len(_COLORS)]
        places = [(x_axis.at(point.x), y_axis.at(point.median)) for point in line]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        shapes.append(f'<path d="M{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        for point, (x, y) in zip(line, places):
            least, most = y_axis.at(point.least), y_axis.at(point.most)
            shapes.append(f'<path d="M{x:.1f} {least:.1f}V{most:.1f}" stroke="{color}" stroke-width="1"/>')
            shapes.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>')
        at = _TOP + 8 + 18 * number
        shapes.append(f'<circle cx="{_WIDTH - _RIGHT + 14}" cy="{at - 4}" r="4" fill="{color}"/>')
        shapes.append(f'<text x="{_WIDTH - _RIGHT + 24}" y="{at}">{escape(name)}</text>')
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">'
    return "\n".join([head, f"<style>\n{_STYLE}\n</style>", *shapes, "</svg>\n"])


class _Axis:
    """A logarithmic axis that holds all `values`, from pixel `begin` to pixel `end`."""

    def __init__(self, values: Sequence[float], begin: float, end: float) -> None:
        low, high = math.log10(min(values)), math.log10(max(values))
        pad = max(0.05 * (high - low), 0.04)
        self._low, self._high, self._begin, self._end = low - pad, high + pad, begin, end

    def at(self, value: float) -> float:
        share = (math.log10(value) - self._low) / (self._high - self._low)
        return self._begin + share * (self._end - self._begin)

    @property
    def marks(self) -> list[tuple[float, float]]:
        """Round values on it: powers of ten, and in a short axis twice and five times these."""
        steps = (1,) if self._high - self._low > 3 else (1, 2, 5)
        powers = range(math.floor(self._low), math.ceil(self._high) + 1)
        values = (step * 10.0**power for power in powers for step in steps)
        return [(value, self.at(value)) for value in values if self._low <= math.log10(value) <= self._high]


def _told(value: float) -> str:
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"
