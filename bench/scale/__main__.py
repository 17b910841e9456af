"""`python -m bench.scale`: each model with each number of ranks, one after another, as a table and JSON."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.growth.plot import Point, draw
from bench.scale.models import MODELS

WORLDS = (1, 8, 128, 1024, 16384)
DESCRIBED = ("16x100", "163x100")
"""Models of 10^4 and 10^5 boxes whose `.metadata` is written and read."""

_TITLE = "Rank 0, CPU seconds of each step; memory beside that of the imports"
_STEPS = ("account", "slices", "plan", "parts", "images")


def main() -> int:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=__doc__)
    parser.add_argument("--models", nargs="+", default=[*MODELS], help="names, or LAYERSxEXPERTS")
    parser.add_argument("--ranks", nargs="+", type=int, default=WORLDS)
    parser.add_argument("--described", nargs="*", default=DESCRIBED, help="models to write and describe")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path, help="draw rank 0's seconds by ranks, as SVG")
    options = parser.parse_args()
    runs = [_run(model, ranks) for model in options.models for ranks in options.ranks]
    described = [_run(model, 0) for model in options.described]
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(_planned(runs))
    console.print(_described(described))
    if options.figure is not None:
        options.figure.write_text(figure(runs))
    if options.json is not None:
        options.json.write_text(json.dumps({"planned": runs, "described": described}, indent=1) + "\n")
    return 0


def figure(runs: list[dict[str, Any]]) -> str:
    """CPU seconds of rank 0 by ranks, a line for each model."""
    series: dict[str, list[Point]] = {}
    for run in runs:
        seconds = _seconds(run)
        series.setdefault(f"{run['boxes']:,} boxes", []).append(
            Point(run["ranks"], seconds, seconds, seconds)
        )
    return draw("CPU seconds of rank 0 for account, plan and parts", "ranks", "s", series)


def _seconds(run: dict[str, Any]) -> float:
    return sum(float(run["steps"][name]["cpu_seconds"]) for name in ("specs", *_STEPS))


def _run(model: str, ranks: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.scale.measure", model, str(ranks)]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found: dict[str, Any] = json.loads(printed)
    return found


def _planned(runs: list[dict[str, Any]]) -> Table:
    table = Table(title=_TITLE, title_justify="left")
    for heading in (
        "model",
        "boxes",
        "ranks",
        *_STEPS,
        "in all",
        "peak MB",
        "parts MB",
        "largest",
        "its s",
    ):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for run in runs:
        steps = run["steps"]
        seconds = [steps[name]["cpu_seconds"] for name in _STEPS]
        seconds[0] += steps["specs"]["cpu_seconds"]
        table.add_row(
            *(run["model"], f"{run['boxes']:,}", f"{run['ranks']:,}"),
            *(f"{each:.2f}" for each in (*seconds, _seconds(run))),
            f"{steps['images']['peak_bytes'] / 1e6:,.0f}",
            f"{run['image_bytes'] / 1e6:,.1f}",
            f"{run['largest_image_bytes'] / 1e3:,.0f}",
            f"{steps['another rank']['cpu_seconds']:.2f}",
        )
    return table


def _described(runs: list[dict[str, Any]]) -> Table:
    table = Table(title="Reading .metadata", title_justify="left")
    for heading in ("boxes", "CPU s", "peak MB"):
        table.add_column(heading, justify="right")
    for run in runs:
        step = run["steps"]["describe"]
        table.add_row(f"{run['boxes']:,}", f"{step['cpu_seconds']:.2f}", f"{step['peak_bytes'] / 1e6:,.0f}")
    return table


if __name__ == "__main__":
    sys.exit(main())
