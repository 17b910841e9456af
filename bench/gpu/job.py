"""A training job's ranks, which export the model that they hold again and again: a benchmark's live exports.

    torchrun --nproc-per-node N -m tests.fixtures.hosts bench.gpu.job REQUEST

REQUEST is a JSON file with a `Request`. A repetition exports once over each backend to each target; those of
the first ask transformers for the model's definition, the others find the answer in the cache.
Rank 0 writes what was measured to the request's `results` after every export, so that nothing is lost if the
launch is ended.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import pp_export
from bench.gpu.model import SIZES, Model
from pp_export.core.errors import ExportError

_STALL_SECONDS = 45


@dataclass(frozen=True)
class Request:
    """What to export: `targets` are folders by name, `runs` how often for each. No repetition begins at or
    after `end_at` (seconds of the epoch), but the first always does.
    """

    size: str
    device: str
    reference: str
    results: str
    targets: dict[str, str]
    runs: dict[str, int]
    backends: list[str]
    end_at: float


def main() -> None:
    """Export, and write down what it took."""
    request = Request(**json.loads(Path(sys.argv[1]).read_text()))
    dist.init_process_group("gloo")  # the job's own; values go over a wire of the export's
    rank, size = dist.get_rank(), dist.get_world_size()
    if request.device == "cuda":
        torch.cuda.set_device(0)  # all ranks share one GPU
    model = Model(SIZES[request.size], rank, size, request.device)
    cache = Path(request.results).with_name("cache")
    os.environ["XDG_CACHE_HOME"] = str(cache)
    runs: list[dict[str, Any]] = []
    for repetition in range(max(request.runs.values())):
        if _all_agree(repetition > 0 and time.time() >= request.end_at):
            break
        for target, folder in request.targets.items():
            for backend in request.backends if repetition < request.runs[target] else ():
                if repetition == 0 and rank == 0:
                    shutil.rmtree(cache, ignore_errors=True)
                run = {"kind": "live", "ranks": size, "target": target, "asked": backend}
                found = export(model, request, folder, backend)
                runs.append(run | {"definition_asked": repetition == 0} | found)
                if rank == 0:
                    Path(request.results).write_text(json.dumps(runs))
    dist.barrier()
    dist.destroy_process_group()


def _all_agree(value: bool) -> bool:
    """What rank 0 says."""
    values = [value]
    dist.broadcast_object_list(values, 0)
    return values[0]


def export(model: Model, request: Request, folder: str, backend: Any) -> dict[str, Any]:
    """One export, from the moment when all ranks are ready until it has returned on rank 0."""
    output = Path(folder) / "export"
    if dist.get_rank() == 0:
        shutil.rmtree(output, ignore_errors=True)
        os.sync()  # no export pays for what the one before left to be written
    dist.barrier()
    begin = time.perf_counter()
    try:
        report = pp_export.export_model(
            [model],
            reference=request.reference,
            output=output,
            backend=backend,
            stall_seconds=_STALL_SECONDS,
        )
    except ExportError as error:
        return {"failed": str(error)}
    wall_seconds = time.perf_counter() - begin
    dist.barrier()
    if dist.get_rank() == 0:
        shutil.rmtree(output)
    return {
        "wall_seconds": wall_seconds,
        "seconds": dict(report.seconds),
        "bytes": report.total_size,
        "sent_bytes": sum(link["bytes"] for link in report.links),
        "backend": report.backend,
        "backend_reason": report.backend_reason,
        "peak_anonymous_bytes": list(report.peak_anonymous_bytes),
        "planned_peak_bytes": list(report.planned_peak_bytes),
    }


if __name__ == "__main__":
    main()
