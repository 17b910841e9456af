"""`python -m bench.gpu`, from the repository's root: what the machine can do, then exports of a model on its
GPU and of a checkpoint, and how near they come to it. Never fails on a number.

Live exports of one launch take turns: each repetition exports once over every backend to every target.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from bench.gpu import launches, machine
from bench.gpu.job import Request
from bench.gpu.machine import Machine
from bench.gpu.model import SIZES, write_checkpoint
from bench.gpu.show import show

MEMORY, DISK = "memory", "disk"
_SLOW_DISK = 10**9
_HEADROOM = 1.5
_LIVE_SHARES = {1: 0.35, 2: 0.75}
"""At what part of the time limit no further repetition of a launch of so many ranks begins."""
_LAST_EXPORTS_S = 60
"""What a repetition that has begun may still take, before its launch is ended."""


def main(words: list[str] | None = None) -> int:
    """Measure what the command line, or `words`, ask for."""
    options = _parser().parse_args(words)
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    if options.device == "cuda" and not torch.cuda.is_available():
        console.print("bench-gpu is skipped: torch sees no GPU")
        return 0
    options.disk.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="bench-gpu-", dir=options.disk) as disk,
        tempfile.TemporaryDirectory(prefix="bench-gpu-", dir=options.memory) as memory,
    ):
        bench = Bench(options, console, Path(disk), Path(memory))
        bench.run()
    facts = _facts(options, bench)
    show(Console(width=None if sys.stdout.isatty() else 200), bench.machine, bench.runs, facts)
    if options.json is not None:
        image = {"facts": facts, "machine": dataclasses.asdict(bench.machine), "runs": bench.runs}
        options.json.write_text(json.dumps(image, indent=1) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__.split("\n\n")[0])
    parser.add_argument("--runs", type=int, default=3, help="live exports of each kind (default: 3)")
    parser.add_argument("--live-ranks", type=int, nargs="*", default=[1, 2], help="ranks of each job")
    parser.add_argument(
        "--offline-ranks",
        type=int,
        nargs="*",
        default=[1, 2, 4, 8],
        help="ranks of each export of a checkpoint",
    )
    parser.add_argument("--limit-s", type=float, default=270, help="begin nothing after that (default: 270)")
    parser.add_argument("--disk", type=Path, default=Path("build"), help="folder on a disk (default: build)")
    parser.add_argument("--targets", nargs="+", choices=(MEMORY, DISK), default=[MEMORY, DISK])
    parser.add_argument("--memory", type=Path, default=Path("/dev/shm"), help="folder in memory")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep everything measured in FILE")
    parser.add_argument("--size", choices=SIZES, default="full", help="of the model: 3.9 GB, 1 GB, 7 MB")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: to try this program")
    return parser


class Bench:
    """One run of the benchmark; `machine` and `runs` are what was measured."""

    def __init__(self, options: argparse.Namespace, console: Console, disk: Path, memory: Path) -> None:
        self._options, self._console, self._disk = options, console, disk.absolute()
        self._sizes, self._begun = SIZES[options.size], time.time()
        folders = {MEMORY: memory.absolute(), DISK: self._disk}
        self.targets = {name: folders[name] for name in options.targets}
        self.notes: list[str] = []
        for name, folder in list(self.targets.items()):
            free, needed = shutil.disk_usage(folder).free, _HEADROOM * self.num_bytes
            if free < needed:
                del self.targets[name]
                self.notes.append(f"nothing goes to {name}: {free / 1e9:.1f} GB are free in {folder}")
        self._reference = self._disk / "reference"
        self._reference.mkdir()
        (self._reference / "config.json").write_text(json.dumps(self._sizes.config_json()))
        self.runs: list[dict[str, Any]] = []
        self.machine: Machine

    def run(self) -> None:
        """Measure the machine, then live exports, then exports of a checkpoint."""
        self._say("measuring the machine")
        options = self._options
        counts = sorted({*options.live_ranks, *options.offline_ranks})
        num_bytes = (8 << 20) if options.size == "small" else (512 << 20)
        # A disk takes the live exports alone, unless there is nothing else.
        writers = {DISK: counts if MEMORY not in self.targets else options.live_ranks}
        folders = {name: (folder, writers.get(name, counts)) for name, folder in self.targets.items()}
        self.machine = machine.measure(options.device, num_bytes, counts, folders)
        for num_ranks in options.live_ranks:
            self._live(num_ranks)
        if options.offline_ranks and self.targets:
            self._offline()

    def _live(self, num_ranks: int) -> None:
        options = self._options
        backends = ["gloo", "nccl"] if num_ranks > 1 and options.device == "cuda" else ["gloo"]
        self._say(f"live exports by {num_ranks} ranks")
        request = Request(
            size=options.size,
            device=options.device,
            reference=str(self._reference),
            results=str(self._disk / f"live-{num_ranks}.json"),
            targets={name: str(folder) for name, folder in self.targets.items()},
            runs={name: self._num_runs(name, num_ranks) for name in self.targets},
            backends=backends,
            end_at=self._begun + options.limit_s * _LIVE_SHARES.get(num_ranks, 0.75),
        )
        self._add(*launches.live(num_ranks, request, request.end_at + _LAST_EXPORTS_S - time.time()))

    def _offline(self) -> None:
        """Round by round, each once with every number of ranks, while there is time; into memory if there is
        room.
        """
        self._say("writing a checkpoint")
        checkpoint = write_checkpoint(self._disk / "iter_0000010", self._sizes)
        target = next(iter(self.targets))
        slowest = 0.0
        for repetition in range(self._options.runs):
            begun = time.time()
            if repetition > 0 and slowest > self._seconds_left:
                return
            for num_ranks in self._options.offline_ranks:
                self._say(f"an export of the checkpoint by {num_ranks} ranks")
                folders = {
                    "--checkpoint": checkpoint,
                    "--reference": self._reference,
                    "--output": self.targets[target] / "export",
                    "--report": self._disk / f"offline-{num_ranks}.json",
                }
                self._add(launches.offline(num_ranks, folders, target, self._seconds_left))
            slowest = max(slowest, time.time() - begun)

    @property
    def num_bytes(self) -> int:
        """The model's, its vocabulary padded."""
        layers = self._sizes.layers
        shapes = [(k, torch.Size(shape).numel()) for k, shape, _ in self._sizes.tensors()]
        return sum(2 * n * (layers if k.startswith("decoder.layers.") else 1) for k, n in shapes)

    @property
    def _seconds_left(self) -> float:
        return self._begun + float(self._options.limit_s) - time.time()

    def _num_runs(self, target: str, num_ranks: int) -> int:
        """A slow disk would take all the time: one run shows what it does."""
        is_slow = self.machine.storage[target][num_ranks].median < _SLOW_DISK
        return 1 if target == DISK and is_slow else int(self._options.runs)

    def _add(self, *runs: dict[str, Any]) -> None:
        self.runs += runs
        for run in runs:
            told = f"{run['seconds']}" if "seconds" in run else run["failed"]
            self._console.print(
                f"  {run['kind']} {run['ranks']} {run.get('target')} {run.get('asked')}: {told}"
            )

    def _say(self, text: str) -> None:
        self._console.print(f"{time.time() - self._begun:5.0f} s  {text}")


def _facts(options: argparse.Namespace, bench: Bench) -> dict[str, str]:
    """What the figures were measured on."""
    has_gpu = options.device == "cuda"
    gpu = torch.cuda.get_device_name(0) if has_gpu else "no GPU"
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    nccl = ".".join(map(str, torch.cuda.nccl.version())) if has_gpu else "none"  # type: ignore[no-untyped-call]
    facts = {
        "machine": f"{gpu}, {os.cpu_count()} cores, load at the end {load}",
        "software": f"Python {platform.python_version()}, torch {torch.__version__}, NCCL {nccl}",
        "model": f"in Qwen2's shape, {bench.num_bytes / 1e9:.2f} GB in bfloat16",
        "targets": ", ".join(f"{name}: {folder.parent}" for name, folder in bench.targets.items()),
    }
    return facts | ({"left out": "; ".join(bench.notes)} if bench.notes else {})


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))  # so that nothing is left behind
    sys.exit(main())
