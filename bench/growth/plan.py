"""`python -m bench.growth.plan BOXES`: plans a synthetic mixture of experts of about so many stored boxes.

Prints seconds of CPU and the peak of memory as JSON. A process of its own, so that the peak is its own.
"""

from __future__ import annotations

import json
import resource
import sys
import time

from bench.scale.models import toy
from pp_export.architecture import table_files
from pp_export.architecture.accounting import Expected, account
from pp_export.planning.planner import make_plan

WORLD_SIZE = 64
_BOXES_OF_AN_EXPERT, _MAX_LAYERS, _MAX_SHARD_BYTES = 6, 160, 5 * 10**9


def main() -> None:
    """Plan for WORLD_SIZE ranks."""
    wanted = float(sys.argv[1])
    num_layers = max(1, min(_MAX_LAYERS, round(wanted / _BOXES_OF_AN_EXPERT / 16)))
    num_experts = max(1, round(wanted / _BOXES_OF_AN_EXPERT / num_layers))
    model = toy(num_layers, num_experts)
    catalog = model.catalog()
    num_boxes = sum(map(len, catalog.slices.values()))
    found: dict[str, float] = {"x": num_boxes}
    begin = time.process_time()
    settled = account(
        table_files.load(model.table),
        catalog.specs,
        model.sizes,
        expected=Expected(None, ""),
        drop_mtp=False,
    )
    found["describe"] = time.process_time() - begin
    begin = time.process_time()
    plan = make_plan(settled, catalog.slices, WORLD_SIZE, max_shard_bytes=_MAX_SHARD_BYTES)
    found["plan"] = time.process_time() - begin
    begin = time.process_time()
    for rank in range(WORLD_SIZE):
        plan.image_of(rank)
    found["parts"] = time.process_time() - begin
    found["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
