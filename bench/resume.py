"""`python -m bench.resume`, from the repository's root: what a resumed export does, in shares of a whole one.

In every round an export runs undisturbed, another is killed as soon as a share of its bytes is committed, and
a third resumes it. The kernel says how many bytes each process has written.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench import checkpoint
from bench.checkpoint import Source
from pp_export.core import file_names
from tests.fixtures.launch import ROOT

_BLOCK_BYTES = 512
_LOOK_SECONDS = 0.02


@dataclass(frozen=True)
class Ended:
    """A process that ended: how long it took, its CPU seconds, the bytes that it wrote."""

    seconds: float
    cpu_seconds: float
    written_bytes: int


@dataclass(frozen=True)
class Round:
    """An undisturbed export, one that was killed, and the one that resumed it."""

    whole: Ended
    killed: Ended
    resumed: Ended


def main() -> int:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.resume", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--at", type=float, default=0.85, metavar="SHARE", help="committed when it is killed")
    parser.add_argument("--model", default="qwen2_1_5b", help="a Qwen2 of tests.fixtures.models")
    parser.add_argument("--cache", type=Path, default=checkpoint.default_cache())
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    source = checkpoint.locate(options.model, options.cache.absolute())
    checkpoint.ensure(source, options.model)
    console, rounds = Console(stderr=True, soft_wrap=True, highlight=False), []
    with tempfile.TemporaryDirectory(prefix="runs-", dir=options.cache) as folder:
        for number in range(options.rounds):
            rounds.append(_round(source, Path(folder), options.at))
            console.print(f"round {number + 1}: {rounds[-1]}")
    _show(rounds, options.at)
    if options.json is not None:
        options.json.write_text(json.dumps([_to_json(each) for each in rounds], indent=1) + "\n")
    return 0


def _round(source: Source, folder: Path, share: float) -> Round:
    whole = folder / "whole"
    found = _export(source, whole)
    size_of = {path.name: path.stat().st_size for path in whole.glob("*.safetensors")}
    shutil.rmtree(whole)
    target = folder / "resumed"

    def is_far_enough() -> bool:
        records = folder.glob(f".{target.name}.*/{file_names.SHARD_JSONS}/model-*.json")
        return sum(size_of.get(path.stem, 0) for path in records) >= share * sum(size_of.values())

    killed = _export(source, target, "--resume", kill_when=is_far_enough)
    resumed = _export(source, target, "--resume")
    shutil.rmtree(target)
    return Round(found, killed, resumed)


def _export(
    source: Source, output: Path, *words: str, kill_when: Callable[[], bool] = lambda: False
) -> Ended:
    os.sync()
    source.drop()
    command = [sys.executable, "-m", "pp_export", "export", *words]
    command += ["--checkpoint", str(source.checkpoint), "--reference", str(source.reference)]
    begin = time.perf_counter()
    process = subprocess.Popen(
        [*command, "--output", str(output)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    was_killed = False
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        if not was_killed and kill_when():
            process.send_signal(signal.SIGKILL)
            was_killed = True
        time.sleep(_LOOK_SECONDS)
    seconds = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, -signal.SIGKILL if was_killed else 0):
        raise SystemExit(f"{' '.join(command)}: exit status {process.returncode}")
    return Ended(seconds, *_used(usage))


def _used(usage: resource.struct_rusage) -> tuple[float, int]:
    return usage.ru_utime + usage.ru_stime, usage.ru_oublock * _BLOCK_BYTES


def _show(rounds: list[Round], share: float) -> None:
    table = Table(title=f"resumed, after {share:.0%} was committed")
    for column in ("of a whole export", "median", "least", "most"):
        table.add_column(column, justify="left" if table.columns == [] else "right")
    values: dict[str, Callable[[Ended], float]] = {
        "bytes written": lambda ended: float(ended.written_bytes),
        "CPU seconds": lambda ended: ended.cpu_seconds,
        "seconds": lambda ended: ended.seconds,
    }
    for name, value in values.items():
        ratios = [value(each.resumed) / value(each.whole) for each in rounds]
        shown = (statistics.median(ratios), min(ratios), max(ratios))
        table.add_row(name, *(f"{ratio:.1%}" for ratio in shown))
    Console().print(table)


def _to_json(each: Round) -> dict[str, dict[str, float]]:
    return {name: dict(vars(ended)) for name, ended in vars(each).items()}


if __name__ == "__main__":
    raise SystemExit(main())
