"""One case, measured in its own process: `python -m bench.scale.measure MODEL RANKS` prints it as JSON."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from bench.scale.models import MODELS, Model, toy
from pp_export.architecture import table_files
from pp_export.architecture.accounting import Expected, account
from pp_export.checkpoint.catalog import Catalog
from pp_export.core.collector import paused_collector
from pp_export.planning import part_image
from pp_export.planning.planner import make_plan
from pp_export.planning.proof import ProvedPart
from pp_export.process.own_memory import peak_anonymous_bytes

T = TypeVar("T")
MAX_SHARD_BYTES = 5 * 10**9


class Steps:
    """CPU seconds of each step, and the peak of memory by its end, less that of the imports."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, float]] = {}
        self._base = peak_anonymous_bytes()

    def take(self, name: str, act: Callable[[], T]) -> T:
        begun = time.process_time()
        made = act()
        seconds = time.process_time() - begun
        self.found[name] = {"cpu_seconds": seconds, "peak_bytes": peak_anonymous_bytes() - self._base}
        return made


def model_of(name: str) -> Model:
    """A model by its name, or `LAYERSxEXPERTS` for one of any size."""
    return MODELS[name] if name in MODELS else toy(*map(int, name.split("x")))


def measure(model: Model, world_size: int) -> dict[str, Any]:
    """All steps of rank 0 from a catalog to the parts of all ranks, and what the rank with the largest
    does.
    """
    steps = Steps()
    catalog = steps.take("catalog", model.catalog)
    specs = steps.take("specs", lambda: catalog.specs)
    table = table_files.load(model.table)
    settled = steps.take(
        "account",
        lambda: account(table, specs, model.sizes, expected=Expected(None, ""), drop_mtp=False),
    )
    slices = steps.take("slices", lambda: catalog.slices)
    plan = steps.take("plan", lambda: make_plan(settled, slices, world_size, max_shard_bytes=MAX_SHARD_BYTES))
    steps.take("parts", lambda: plan.fingerprint)
    images = steps.take(
        "images", lambda: [(plan.image_of(p.rank), catalog.image_of(p.items)) for p in plan.parts]
    )
    sizes = [len(own) + len(of_catalog) for own, of_catalog in images]
    largest = sizes.index(max(sizes))
    own, of_catalog = images[largest]

    def open_part() -> None:
        proved = ProvedPart.from_bytes(own)
        fingerprint = proved.fingerprint(largest, world_size)
        assert fingerprint == plan.fingerprint
        part_image.from_bytes(proved.body, fingerprint)
        Catalog.from_bytes(of_catalog)

    steps.take("another rank", open_part)
    return {
        "model": model.name,
        "ranks": world_size,
        "boxes": len(catalog.stored_items),
        "tensors": len(settled.outputs),
        "steps": steps.found,
        "image_bytes": sum(sizes),
        "largest_image_bytes": max(sizes),
        "planned_peak_bytes": max(part.peak_bytes for part in plan.parts),
    }


def measure_description(model: Model) -> dict[str, Any]:
    """What rank 0 does with the `.metadata` of such a checkpoint."""
    from bench.scale.metadata import write_checkpoint
    from pp_export.checkpoint.dcp.catalog import read_catalog

    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder) / "checkpoint"
        write_checkpoint(model.catalog(), at)
        steps = Steps()
        catalog = steps.take("describe", lambda: read_catalog(at))
    return {"model": model.name, "boxes": len(catalog.stored_items), "steps": steps.found}


def main() -> None:
    """Measure one case and print it."""
    name, ranks = sys.argv[1:]
    with paused_collector():
        model = model_of(name)
        found = measure(model, int(ranks)) if int(ranks) else measure_description(model)
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
