"""`python -m bench.growth`, from the repository's root: measures along each axis and draws what it found.

Rounds go over all points of an axis before they begin again, so that a slow minute of the machine hits all
of them. Figures and what was measured are kept in docs/figures, one pair of files for each axis.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from collections import defaultdict
from pathlib import Path

import torch
from rich.console import Console

from bench.checkpoint import default_cache
from bench.growth.axes import AXES, Axis, Measured, working_in
from bench.growth.plot import Point, draw
from tests.fixtures.launch import ROOT

FIGURES = ROOT / "docs" / "figures"


def main(words: list[str] | None = None) -> int:
    """Measure what the command line, or `words`, ask for."""
    options = _parser().parse_args(words)
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    options.figures.mkdir(parents=True, exist_ok=True)
    with working_in(options.cache) as folder:
        for axis in (AXES[name] for name in options.axis or AXES):
            points = tuple(options.points or axis.points)
            runs = _measured(axis, points, options.rounds, folder, console)
            facts = {
                "machine": f"{os.cpu_count()} cores, load at the end {os.getloadavg()[0]:.1f}",
                "software": f"Python {platform.python_version()}, torch {torch.__version__}",
                "rounds": options.rounds,
            }
            kept = {"axis": axis.name, "label": axis.label, "facts": facts, "runs": runs}
            (options.figures / f"growth-{axis.name}.json").write_text(json.dumps(kept, indent=1) + "\n")
            figure = draw(f"Seconds by {axis.name}", axis.label, "s", series_of(axis, runs))
            (options.figures / f"growth-{axis.name}.svg").write_text(figure)
            console.print(f"{axis.name}: {options.figures / f'growth-{axis.name}.svg'}")
    return 0


def series_of(axis: Axis, runs: list[Measured]) -> dict[str, list[Point]]:
    """Median, least and most of each series at each point."""
    at: defaultdict[float, list[Measured]] = defaultdict(list)
    for run in runs:
        at[run["x"]].append(run)
    found: dict[str, list[Point]] = {}
    for key, name in axis.series.items():
        line = []
        for x, rounds in sorted(at.items()):
            values = [max(run[key], 1e-3) for run in rounds]
            line.append(Point(x, statistics.median(values), min(values), max(values)))
        found[name] = line
    return found


def _measured(
    axis: Axis, points: tuple[float, ...], rounds: int, folder: Path, console: Console
) -> list[Measured]:
    measure = axis.measuring(folder)
    runs = []
    for number in range(rounds):
        for point in points:
            if number >= axis.max_rounds.get(point, rounds):
                continue
            run = measure(point, number)
            runs.append({**run, "round": number})
            told = ", ".join(f"{name} {run[key]:.2f} s" for key, name in axis.series.items())
            console.print(f"{axis.name} {point:g}, round {number + 1}: {told}")
    return runs


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.growth", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--axis", nargs="+", choices=list(AXES), help="these axes only (default: all)")
    parser.add_argument("--points", nargs="+", type=float, metavar="X", help="measure at these points")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default: %(default)s)")
    parser.add_argument(
        "--cache", type=Path, default=default_cache(), help="where checkpoints and outputs lie meanwhile"
    )
    parser.add_argument(
        "--figures", type=Path, default=FIGURES, metavar="FOLDER", help="where figures are kept"
    )
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
