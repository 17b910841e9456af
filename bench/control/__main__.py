"""`python -m bench.control --ranks N`, from the repository's root: measures and prints a table."""

from __future__ import annotations

import os

# Torch looks up the name of every peer's address; a machine whose name server is slow shall not be measured.
os.environ.setdefault("RES_OPTIONS", "attempts:1 timeout:1")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

import argparse
import platform
import sys
import threading

import torch
from rich.console import Console
from rich.table import Table

from bench.control.circles import Measured, measure_circle, measure_look, server
from pp_export.distributed.tree import Seat, block_size
from pp_export.view.text import human_bytes


def main(words: list[str] | None = None) -> int:
    """Measure what the command line, or `words`, ask for."""
    parser = argparse.ArgumentParser(prog="python -m bench.control", description="What control steps cost.")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 8, 128, 16_384])
    parser.add_argument("--times", type=int, default=5, help="how often each step is taken (default: 5)")
    parser.add_argument("--value-bytes", type=int, default=2048, help="what scatter gives a rank")
    options = parser.parse_args(words)
    threading.stack_size(256 << 10)
    console = Console(width=None if sys.stdout.isatty() else 140)
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    console.print(f"{os.cpu_count()} cores, load {load}, {versions}", highlight=False)
    table = Table(title="Control: median, least ms of a step, and what it asks of the busiest store")
    for heading in ("ranks", "step", "ms", "least", "requests", "of them looks"):
        table.add_column(heading, justify="left" if heading == "step" else "right")
    for num_ranks in options.ranks:
        for row in _rows(num_ranks, options.times, options.value_bytes):
            table.add_row(*row)
        table.add_section()
    console.print(table)
    return 0


def _rows(num_ranks: int, times: int, value_bytes: int) -> list[tuple[str, ...]]:
    """Those of one size of the world. Where it has several blocks, the main store is the busiest: it serves
    the first ranks and the first block.
    """
    seat = Seat(0, num_ranks, min(block_size(num_ranks), num_ranks))
    with server() as port:
        circles = [
            measure_circle(port, len(seat.members), is_block=True, value_bytes=value_bytes, times=times)
        ]
    if seat.num_blocks > 1:
        packed = value_bytes * seat.block_size
        with server() as port:
            circles.append(
                measure_circle(port, seat.num_blocks, is_block=False, value_bytes=packed, times=times)
            )
    rows: list[tuple[str, ...]] = []
    for name in circles[0]:
        parts: list[Measured] = [circle[name] for circle in circles]
        rows.append(
            (
                f"{num_ranks:,}",
                name,
                f"{1e3 * sum(part.median for part in parts):.1f}",
                f"{1e3 * sum(min(part.seconds) for part in parts):.1f}",
                f"{sum(part.requests for part in parts):.0f}",
                f"{sum(part.looks for part in parts):.0f}",
            )
        )
    with server() as port:
        look = measure_look(port, num_ranks, seat.block_size)
    rows.append(
        (
            f"{num_ranks:,}",
            f"look at all progress ({human_bytes(look['bytes'])}, {1e3 * look['cpu_seconds']:.1f} ms CPU)",
            f"{1e3 * look['seconds']:.1f}",
            "",
            f"{look['requests']:.0f}",
            "2" if seat.num_blocks > 1 else "1",
        )
    )
    return rows


if __name__ == "__main__":
    sys.exit(main())
