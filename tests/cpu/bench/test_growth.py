"""The figures of growth: what was measured is what is drawn."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from itertools import pairwise

from bench.growth.__main__ import series_of
from bench.growth.axes import AXES
from bench.growth.plot import Point, draw

SVG = "{http://www.w3.org/2000/svg}"


def test_a_figure_shows_each_point_in_proportion() -> None:
    """Valid XML, whatever the names; equal factors are equal distances, on both axes; larger is higher."""
    line = [Point(x, x / 2, x / 4, x) for x in (1, 10, 100, 1000)]
    root = ET.fromstring(draw("a < b", "x & y", "s", {"one <b>": line, "other": line[1:2]}))
    texts = [each.text for each in root.iter(f"{SVG}text")]
    assert {"a < b", "x & y", "s", "one <b>", "other", "10", "1k"} <= set(texts)
    dots = [c for c in root.iter(f"{SVG}circle") if c.get("r") == "3"]
    x, y = ([float(dot.get(name) or "") for dot in dots[:4]] for name in ("cx", "cy"))
    for values in (x, y):
        steps = [b - a for a, b in pairwise(values)]
        assert all(math.isclose(step, steps[0], abs_tol=0.2) for step in steps)
    assert x == sorted(x)
    assert y == sorted(y, reverse=True)
    assert len(dots) == 5


def test_a_point_is_the_median_of_its_rounds_with_their_spread() -> None:
    """Runs at one place of the axis are one point, however they are mixed."""
    runs = [
        {"x": 2.0, "wall": 5.0, "cpu": 1.0, "bytes": 1.0},
        {"x": 1.0, "wall": 9.0, "cpu": 1.0, "bytes": 1.0},
        {"x": 2.0, "wall": 7.0, "cpu": 2.0, "bytes": 1.0},
        {"x": 2.0, "wall": 4.0, "cpu": 3.0, "bytes": 1.0},
    ]
    found = series_of(AXES["ranks"], runs)
    assert found["whole export"] == [Point(1, 9, 9, 9), Point(2, 5, 4, 7)]
    assert found["CPU of all ranks"][1] == Point(2, 2, 1, 3)


def test_every_axis_has_points_that_can_be_drawn() -> None:
    """Points are positive and ascend, and no axis counts rounds of a point that it hasn't."""
    for axis in AXES.values():
        assert list(axis.points) == sorted(set(axis.points))
        assert min(axis.points) > 0
        assert set(axis.max_rounds) <= set(axis.points)
