"""Claims of `pp_export.planning.rank_plan`: what describing and planning takes is a planned number."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from pp_export.planning.rank_plan import BOX_BYTES, DESCRIBED_BOX_BYTES, TENSOR_BYTES
from tests.cpu.planning.test_planner import MOE, ROOT, planned

MEASURE = """
import json, sys, tempfile
from pathlib import Path
from bench.scale.measure import MAX_SHARD_BYTES
from bench.scale.models import toy
from pp_export.architecture import table_files
from pp_export.architecture.accounting import Expected, account
from pp_export.checkpoint.dcp.catalog import read_catalog
from pp_export.planning.planner import make_plan
from pp_export.core.collector import paused_collector
from pp_export.process.own_memory import peak_anonymous_bytes

model = toy(*map(int, sys.argv[1].split("x")))
table = table_files.load(model.table)
path = Path(sys.argv[2])
base = peak_anonymous_bytes()
with paused_collector():
    catalog = read_catalog(path)
    settled = account(
        table, catalog.specs, model.sizes, expected=Expected(None, ""), drop_mtp=False
    )
    plan = make_plan(settled, catalog.slices, 4, max_shard_bytes=MAX_SHARD_BYTES)
    for part in plan.parts:
        plan.image_of(part.rank)
        catalog.image_of(part.items)
print(json.dumps([plan.part_of(0).metadata_bytes, peak_anonymous_bytes() - base, len(catalog.stored_items)]))
"""
WRITE = """
import sys
from pathlib import Path
from bench.scale.metadata import write_checkpoint
from bench.scale.models import toy

write_checkpoint(toy(*map(int, sys.argv[1].split("x"))).catalog(), Path(sys.argv[2]))
"""


@pytest.mark.parametrize(("model", "num_boxes"), [("1x12", 100), ("16x100", 10_000)])
def test_planned_memory_is_what_rank_0_takes(tmp_path: object, model: str, num_boxes: int) -> None:
    """A process that describes a checkpoint and plans an export of it takes what the plan says, within 10%
    and 10 MB, with a hundred boxes and with ten thousand.
    """
    arguments = [model, f"{tmp_path}/checkpoint"]
    subprocess.run([sys.executable, "-c", WRITE, *arguments], cwd=ROOT, check=True, timeout=120)
    command = [sys.executable, "-c", MEASURE, *arguments]
    answer = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=120)
    planned_bytes, measured, boxes = json.loads(answer.stdout)
    assert 0.8 * num_boxes < boxes < 1.3 * num_boxes
    assert abs(measured - planned_bytes) < 0.1 * planned_bytes + (10 << 20)


def test_a_rank_holds_its_own_part_and_rank_0_all() -> None:
    """What describes the work is counted once for each box read and each tensor made; on rank 0, for all."""
    slices = MOE.slices(2)
    plan = planned(MOE, 4, slices)
    boxes, tensors = sum(map(len, slices.values())), sum(len(shard.tensors) for shard in plan.shards)
    assert plan.part_of(0).metadata_bytes == boxes * DESCRIBED_BOX_BYTES + tensors * TENSOR_BYTES
    for part in plan.parts[1:]:
        made = sum(len(shard.tensors) for shard in part.led)
        assert part.metadata_bytes == len(part.items) * BOX_BYTES + made * TENSOR_BYTES
    assert sum(len(part.items) for part in plan.parts) == boxes
