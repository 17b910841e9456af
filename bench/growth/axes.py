"""What is measured along each axis: at each of its points one command, or one plan, in each round."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from bench import measure
from bench.checkpoint import Source
from bench.gpu.model import SIZES, Sizes, write_checkpoint
from bench.variants import Variant
from tests.fixtures.launch import ROOT

_SIZES = Sizes(1, 2048, 16, 4, 128, ffn=8192, vocab=8000, padded=8064)
_LAYER_GB, _BESIDES_GB = 0.1217, 0.066
_PATIENCE_SECONDS = 300

Measured = dict[str, float]
Measure = Callable[[float, int], Measured]
"""Measures at a point of the axis, in a round."""


@dataclass(frozen=True)
class Axis:
    """An axis: the points on it, what each series there is called, and how many rounds are counted at most at
    a point. `measuring` is given the folder for checkpoints and outputs.
    """

    name: str
    label: str
    points: tuple[float, ...]
    series: dict[str, str]
    measuring: Callable[[Path], Measure]
    max_rounds: dict[float, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Stored:
    """A checkpoint in Qwen2's shape of about so many GB, and its reference."""

    source: Source
    gigabytes: float

    @classmethod
    def write(cls, folder: Path, gigabytes: float) -> Stored:
        """Write it to `folder`, unless it is there, and export it once: the library's answer comes from the
        cache from then on. With 0 GB, it is a toy.
        """
        sizes = (
            SIZES["small"]
            if not gigabytes
            else replace(_SIZES, layers=max(1, round((gigabytes - _BESIDES_GB) / _LAYER_GB)))
        )
        checkpoint, reference = folder / f"{gigabytes:g}GB", folder / f"{gigabytes:g}GB-reference"
        source, is_new = Source(checkpoint, reference), not checkpoint.exists()
        if is_new:
            reference.mkdir(parents=True)
            (reference / "config.json").write_text(json.dumps(sizes.config_json()))
            write_checkpoint(checkpoint, sizes)
        stored = cls(source, source.num_bytes / 1e9)
        if is_new:
            exporting(stored, folder, 0, 1)
        return stored


def exporting(
    stored: Stored, folder: Path, number: int, ranks: int, *options: str, cold: bool = False
) -> Measured:
    """Seconds of a whole verified export, of its CPUs, and from its first byte read to its last verified. If
    it is to be `cold`, the checkpoint's pages are dropped before.
    """
    launcher: tuple[str, ...] = (sys.executable, "-m")
    if ranks > 1:
        launcher += ("torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m")
    output, report, log = folder / "output", folder / "report.json", folder / "log"
    paths = {"checkpoint": stored.source.checkpoint, "reference": stored.source.reference, "output": output}
    words = [word for name, path in {**paths, "report": report}.items() for word in (f"--{name}", str(path))]
    command = (*launcher, "pp_export", "export", *words, *options)
    variant = Variant("export", "", command, output, report)
    measure.clean(variant)
    if cold:
        stored.source.drop()
    else:
        stored.source.warm()
    run = measure.run(variant, number, log)
    measure.clean(variant)
    moving = sum(seconds for phase, seconds in run.phases.items() if phase in ("export", "index"))
    return {"wall": run.wall_seconds, "cpu": run.cpu_seconds, "bytes": moving, "x": stored.gigabytes}


def _by_bytes(folder: Path) -> Measure:
    def at(gigabytes: float, number: int) -> Measured:
        return exporting(Stored.write(folder, gigabytes), folder, number, 1)

    return at


def _by_ranks(folder: Path) -> Measure:
    def at(ranks: float, number: int) -> Measured:
        return {**exporting(Stored.write(folder, 1), folder, number, int(ranks)), "x": ranks}

    return at


def _by_threads(folder: Path) -> Measure:
    def at(threads: float, number: int) -> Measured:
        option = ("--threads", f"{threads:g}")
        return {**exporting(Stored.write(folder, 1), folder, number, 1, *option), "x": threads}

    return at


def _by_tensors(folder: Path) -> Measure:
    def at(boxes: float, number: int) -> Measured:
        command = [sys.executable, "-m", "bench.growth.plan", f"{boxes:g}"]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, timeout=_PATIENCE_SECONDS)
        found: Measured = json.loads(run.stdout)
        return found

    return at


_EXPORT = {"wall": "whole export", "bytes": "read to verified", "cpu": "CPU of all ranks"}

AXES = {
    axis.name: axis
    for axis in (
        Axis("bytes", "GB", (0.2, 0.5, 1, 2, 4, 8), _EXPORT, _by_bytes),
        Axis("ranks", "ranks, 1 GB", (1, 2, 4, 8), _EXPORT, _by_ranks),
        Axis("threads", "threads of one rank, 1 GB", (1, 2, 4), _EXPORT, _by_threads),
        Axis(
            "tensors",
            "stored boxes, metadata only",
            (1e2, 1e3, 1e4, 1e5, 1e6),
            {"describe": "account", "plan": "plan", "parts": "parts of all ranks"},
            _by_tensors,
            {1e6: 1},
        ),
    )
}


@contextmanager
def working_in(folder: Path) -> Iterator[Path]:
    """A folder for checkpoints and outputs, which goes at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="growth-", dir=folder) as made:
        yield Path(made).absolute()
