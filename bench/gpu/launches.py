"""The launches of the benchmark, each ended at the latest when its time is over; what it measured stays."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.gpu.job import Request
from tests.fixtures.launch import ROOT

_TAIL_CHARACTERS = 1500
_PATIENCE_SECONDS = 20.0


def live(num_ranks: int, request: Request, seconds: float) -> list[dict[str, Any]]:
    """What a job of `num_ranks` ranks on one GPU measured; a run that `failed` where it ended badly."""
    results = Path(request.results)
    file = results.with_suffix(".request")
    file.write_text(json.dumps(asdict(request)))
    results.unlink(missing_ok=True)
    command = (*_torchrun(num_ranks), "tests.fixtures.hosts", "bench.gpu.job", str(file))
    failure = _run(command, results.with_suffix(".log"), seconds)
    runs: list[dict[str, Any]] = json.loads(results.read_bytes()) if results.exists() else []
    return [*runs, {"kind": "live", "ranks": num_ranks, "failed": failure}] if failure else runs


def offline(num_ranks: int, options: dict[str, Path], target: str, seconds: float) -> dict[str, Any]:
    """What an export of a checkpoint by `num_ranks` ranks says of itself; `options` name its folders."""
    output, report = options["--output"], options["--report"]
    report.unlink(missing_ok=True)
    launcher = (sys.executable, "-m") if num_ranks == 1 else _torchrun(num_ranks)
    words = [word for flag, value in options.items() for word in (flag, str(value))]
    run: dict[str, Any] = {"kind": "offline", "ranks": num_ranks, "target": target, "asked": "auto"}
    run["definition_asked"] = True
    begin = time.perf_counter()
    failure = _run((*launcher, "pp_export", "export", *words), report.with_suffix(".log"), seconds)
    wall_seconds = time.perf_counter() - begin
    shutil.rmtree(output, ignore_errors=True)
    if failure:
        return run | {"failed": failure}
    found = json.loads(report.read_bytes())
    names = ("seconds", "backend", "backend_reason", "peak_anonymous_bytes", "planned_peak_bytes")
    return run | {"wall_seconds": wall_seconds, "bytes": found["total_size"]} | {n: found[n] for n in names}


def _torchrun(num_ranks: int) -> tuple[str, ...]:
    return (
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={num_ranks}",
        "-m",
    )


def _run(command: Sequence[str], log: Path, seconds: float) -> str:
    """Run to the end; what went wrong, or nothing. One GPU only is shown, which all ranks share."""
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    if seconds <= 0:
        return "not started: the time is over"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | environment | {"CUDA_VISIBLE_DEVICES": gpu},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            return _ended(process, f"no end within {seconds:.0f} s", log)
        except BaseException:
            _ended(process, "", log)
            raise
    return "" if status == 0 else f"exit status {status}: {_tail(log)}"


def _ended(process: subprocess.Popen[bytes], why: str, log: Path) -> str:
    """End a launch: torchrun ends its ranks when it is asked to, not when it is killed."""
    process.terminate()
    try:
        process.wait(_PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    return f"{why}: {_tail(log)}"


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-_TAIL_CHARACTERS:]
