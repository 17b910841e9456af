"""`python -m bench.exchange`, from the repository's root: launches the ranks and prints a table."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from bench.exchange.show import show
from tests.fixtures.launch import ROOT


def main(words: list[str] | None = None) -> int:
    """Measure what the command line, or `words`, ask for."""
    options = _parser().parse_args(words)
    runs = []
    for size in options.ranks:
        runs += _launch(size, options)
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    facts = {
        "machine": f"{os.cpu_count()} cores, load at the end {load}",
        "software": f"Python {platform.python_version()}, torch {torch.__version__}",
        "runs": f"{options.runs} of each way, interleaved, after one that isn't counted",
    }
    show(Console(width=None if sys.stdout.isatty() else 160), runs, facts)
    if options.json is not None:
        options.json.write_text(json.dumps({"facts": facts, "runs": runs}, indent=1) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.exchange", description="The export's exchange against a bare one, over Gloo."
    )
    parser.add_argument("--runs", type=int, default=9, help="counted runs of each way (default: 9)")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4], help="ranks of each launch")
    parser.add_argument(
        "--layers", type=int, default=16, help="layers of the model, 94 MB each (default: 16)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep everything measured in FILE")
    return parser


def _launch(size: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """What `size` ranks of this machine measured."""
    with tempfile.TemporaryDirectory(prefix="exchange-") as folder:
        file = Path(folder) / "runs.json"
        launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size))
        work = ("-m", "bench.exchange.rank", str(file), str(options.runs), str(options.layers))
        subprocess.run(
            [sys.executable, *launcher, *work],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            check=True,
        )
        runs: list[dict[str, Any]] = json.loads(file.read_text())
        return runs


if __name__ == "__main__":
    sys.exit(main())
