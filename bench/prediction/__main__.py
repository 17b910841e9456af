"""`python -m bench.prediction`, from the repository's root: measures the machine, predicts, exports.

What a run takes whatever it moves is measured with a model of nearly no bytes; nothing is fitted to the
exports that are predicted. The checkpoint's pages are dropped before each run, as they are of one that a
cluster has stored.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.checkpoint import Source, default_cache
from bench.growth.axes import Measured, Stored, exporting, working_in
from bench.prediction.rates import disk_gbps, pass_costs
from pp_export.checkpoint.folder_source import CheckpointSource
from pp_export.options.kinds import ExportOptions
from pp_export.planning.machine import Costs, Machine
from pp_export.planning.prediction import Prediction, predict
from pp_export.planning.work import work_of
from pp_export.process.cores import usable_cores
from pp_export.steps.inputs import plan_export, read_inputs
from pp_export.steps.pending import PendingInputs

_LIMIT = 0.25


def main(words: list[str] | None = None) -> int:
    """Measure what the command line, or `words`, ask for."""
    options = _parser().parse_args(words)
    console = Console(width=None if sys.stdout.isatty() else 140)
    with working_in(options.cache) as folder:
        stored, empty = Stored.write(folder, options.gigabytes), Stored.write(folder, 0)
        machine = _machine(folder, empty, options.rounds)
        table = Table(title=f"{stored.gigabytes:.2f} GB: seconds, predicted and measured (least to most)")
        columns = ("ranks", "wall, predicted", "measured", "off by", "bytes, predicted", "measured", "bound")
        for column in columns:
            table.add_column(column, justify="right")
        kept: list[dict[str, Any]] = []
        for ranks in options.ranks:
            found = _predicted(stored.source, ranks, machine)
            runs = [exporting(stored, folder, number, ranks, cold=True) for number in range(options.rounds)]
            walls, moving = ([run[key] for run in runs] for key in ("wall", "bytes"))
            off = found.wall_seconds / statistics.median(walls) - 1
            table.add_row(
                str(ranks),
                f"{found.wall_seconds:.2f}",
                _spread(walls),
                f"{off:+.0%}{'' if abs(off) <= _LIMIT else ' (!)'}",
                f"{found.phases['bytes']:.2f}",
                _spread(moving),
                found.bound_by,
            )
            predicted = {"wall": found.wall_seconds, **found.phases}
            kept.append({"ranks": ranks, "predicted": predicted, "measured": runs})
    console.print(f"machine: {machine}; load at the end {os.getloadavg()[0]:.1f}", table)
    if options.json is not None:
        options.json.write_text(json.dumps({"machine": str(machine), "runs": kept}, indent=1) + "\n")
    return 0


def _machine(folder: Path, empty: Stored, rounds: int) -> Machine:
    """This machine, all of it measured; `empty` is a model of nearly no bytes."""
    read, write = disk_gbps(folder)
    costs = replace(Costs(), **pass_costs(folder))
    (wall, _), (wall_of_two, cpu_of_two), (_, cpu_of_four) = (
        _medians([exporting(empty, folder, number, ranks, cold=True) for number in range(rounds)])
        for ranks in (1, 2, 4)
    )
    start, cores = wall - costs.publish_seconds, usable_cores()
    rank_cpu = (cpu_of_four - cpu_of_two) / 2
    launch = max(0.0, wall_of_two - costs.publish_seconds - max(start, rank_cpu * 2 / cores))
    costs = replace(costs, start_seconds=start, launch_seconds=launch, rank_cpu_seconds=rank_cpu)
    return Machine(nodes=1, cores=cores, read_gbps=read, write_gbps=write, node_gbps=1000, costs=costs)


def _medians(runs: list[Measured]) -> tuple[float, float]:
    """Seconds of the whole runs and of their CPUs."""
    return statistics.median(run["wall"] for run in runs), statistics.median(run["cpu"] for run in runs)


def _predicted(source: Source, ranks: int, machine: Machine) -> Prediction:
    options = ExportOptions(
        checkpoint=source.checkpoint, reference=source.reference, output=source.checkpoint / "never"
    )
    found = CheckpointSource(options.checkpoint, options.iteration, options.check_source)
    inputs = read_inputs(found, options, PendingInputs.start(options))
    num_boxes = sum(map(len, inputs.catalog.slices.values()))
    return predict(work_of(plan_export(inputs, options, ranks), num_boxes, verify=True), machine)


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.prediction", description="Predict exports, then make them."
    )
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4], help="ranks of each export")
    parser.add_argument("--gigabytes", type=float, default=1.0, help="size of the model (default: 1)")
    parser.add_argument("--rounds", type=int, default=3, help="exports of each kind (default: 3)")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="where files lie meanwhile")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep everything measured in FILE")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
