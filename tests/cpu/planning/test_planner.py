"""Claims of `pp_export.planning.export_plan` and `pp_export.planning.planner`: one pure plan, the same
files for every grid, every stored byte read once and in order.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import pp_export
from pp_export.architecture import table_files
from pp_export.architecture.accounting import Account, Expected, account
from pp_export.architecture.made import Placement
from pp_export.core.tensors import Slice
from pp_export.planning import output_files, planner, rank_plan
from pp_export.planning.export_plan import ExportPlan
from pp_export.planning.planner import make_plan, unit_bytes
from pp_export.planning.rank_grid import RankGrid
from pp_export.planning.rounds import LOOK_AHEAD
from pp_export.planning.shard_plan import ALIGNMENT, Contribution, ShardPlan
from pp_export.process.ring_buffer import pages
from tests.fixtures.catalogs import ToyDecoder

DENSE, MOE = ToyDecoder(num_layers=5), ToyDecoder(num_layers=3, num_experts=6)
GRIDS: list[RankGrid | int] = [
    1,
    3,
    20,
    RankGrid((1,)),
    RankGrid((1, 1, 1)),
    RankGrid((1,), 2, 2),
    RankGrid((2, 2), 2),
    RankGrid((1, 1), 1, 3),
    RankGrid((1, 1, 1, 1, 1), 2, 2),
    RankGrid((1, 3, 2), 2),
]
"""Grids that are asked for; a number is that of ranks which read what they write."""
LARGE = 1 << 40
ROOT = Path(pp_export.__file__).resolve().parents[1]
Slices = dict[str, tuple[Slice, ...]]


@cache
def settle(toy: ToyDecoder) -> Account:
    return account(
        table_files.load(toy.table),
        toy.specs(),
        toy.sizes,
        expected=Expected(None, ""),
        drop_mtp=False,
    )


def planned(
    toy: ToyDecoder,
    ranks: RankGrid | int = 1,
    slices: Slices | None = None,
    *,
    max_shard_bytes: int = LARGE,
    leaders: int | None = 1,
) -> ExportPlan:
    """The plan for a grid, or for a number of ranks that read what they write."""
    return make_plan(
        settle(toy),
        toy.slices() if slices is None else slices,
        ranks if isinstance(ranks, int) else ranks.world_size,
        max_shard_bytes=max_shard_bytes,
        grid=None if isinstance(ranks, int) else ranks,
        leaders_per_stage=leaders,
    )


def stacked(slices: Slices) -> Slices:
    """The same slices stored with all layers and experts of a tensor part in one record, one after
    another.
    """
    records: dict[tuple[str, object], tuple[int, int]] = {}
    found: defaultdict[str, list[Slice]] = defaultdict(list)
    for name in sorted(slices, key=lambda n: [int(part) for part in re.findall(r"\d+", n)]):
        for slice_ in slices[name]:
            key = (re.sub(r"\.\d+\.", ".*.", name), slice_.box)
            record, begin = records.get(key, (len(records), 0))
            found[name].append(slice_._replace(item=record, begin=begin))
            records[key] = (record, begin + slice_.num_bytes)
    return {name: tuple(of_tensor) for name, of_tensor in found.items()}


SLICINGS: dict[str, Callable[[ToyDecoder], Slices]] = {
    "whole": lambda toy: toy.slices(1),
    "tp2": lambda toy: toy.slices(2),
    "tp4": lambda toy: toy.slices(4),
    "one record for all layers": lambda toy: stacked(toy.slices(2)),
    "keys in another order": lambda toy: dict(reversed(toy.slices(2).items())),
}


def parts_of(plan: ExportPlan, rank: int) -> list[tuple[ShardPlan, Contribution]]:
    """What a rank reads, and of which shard."""
    return [
        (shard, part)
        for shard in plan.shards
        for bucket in shard.buckets
        for part in bucket.parts
        if part.rank == rank
    ]


def files_of(plan: ExportPlan) -> list[Any]:
    return [(shard.file, shard.unit, shard.tensors, shard.range.header) for shard in plan.shards]


@pytest.mark.parametrize("max_shard_bytes", [1, 1500, LARGE])
@pytest.mark.parametrize("toy", [DENSE, MOE], ids=["dense", "moe"])
def test_files_are_the_same_for_every_grid_and_slicing(toy: ToyDecoder, max_shard_bytes: int) -> None:
    """Names, tensors, offsets and headers of the files depend on the model and the maximal size alone."""
    first = files_of(planned(toy, max_shard_bytes=max_shard_bytes))
    for grid, slicing, leaders in itertools.product(GRIDS, SLICINGS.values(), (1, None)):
        plan = planned(toy, grid, slicing(toy), max_shard_bytes=max_shard_bytes, leaders=leaders)
        assert files_of(plan) == first


@pytest.mark.parametrize("slicing", SLICINGS)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_every_stored_byte_is_read_once_by_one_rank_in_order(
    monkeypatch: pytest.MonkeyPatch, grid: RankGrid | int, slicing: str
) -> None:
    """Of every record each byte is read once, by a single rank of its file's stage, from its first byte to
    its last; no rank is of two stages.
    """
    monkeypatch.setattr(planner, "BUCKET_BYTES", 200)
    slices = SLICINGS[slicing](MOE)
    plan = planned(MOE, grid, slices, max_shard_bytes=1500, leaders=2)
    ends: defaultdict[int, int] = defaultdict(int)
    reader: dict[int, int] = {}
    for rank in range(plan.world_size):
        for shard, part in parts_of(plan, rank):
            assert {shard.leader, rank} <= set(plan.stages[shard.stage])
            for slice_ in part.slices:
                assert reader.setdefault(slice_.item, rank) == rank
                assert slice_.begin == ends[slice_.item]
                ends[slice_.item] += slice_.num_bytes
                assert slice_.name in shard.placements
    sizes: Counter[int] = Counter()
    for slice_ in itertools.chain.from_iterable(slices.values()):
        sizes[slice_.item] += slice_.num_bytes
    assert dict(ends) == dict(sizes)
    assert sum(plan.part_of(rank).read_bytes for rank in range(plan.world_size)) == sum(sizes.values())
    assert sum(map(len, plan.stages)) == len(plan.stage_of_rank)


def test_a_shard_holds_the_placements_of_its_own_tensors() -> None:
    """Placements of a shard lead into its own tensors only, and together they are all placements."""
    plan = planned(MOE, max_shard_bytes=1500)
    found: list[Placement] = []
    for shard in plan.shards:
        names = {place.name for place in shard.tensors}
        for placements in shard.placements.values():
            assert {placement.name for placement in placements} <= names
            found += placements
    assert Counter(found) == Counter(itertools.chain.from_iterable(settle(MOE).placements.values()))


@pytest.mark.parametrize("bucket_bytes", [64, 200, 1000])
def test_buckets_are_bounded(monkeypatch: pytest.MonkeyPatch, bucket_bytes: int) -> None:
    """A bucket holds at most BUCKET_BYTES of slices, or a single row that is larger, and has a number of its
    own.
    """
    monkeypatch.setattr(planner, "BUCKET_BYTES", bucket_bytes)
    plan = planned(DENSE, RankGrid((1, 1), 2), DENSE.slices(2))
    numbers = []
    for bucket in (bucket for shard in plan.shards for bucket in shard.buckets):
        numbers.append(bucket.number)
        slices = [slice_ for part in bucket.parts for slice_ in part.slices]
        assert slices
        assert sum(p.num_bytes for p in slices) <= bucket_bytes or (
            len(slices) == 1 and slices[0].box.shape[0] == 1
        )
        assert len({part.rank for part in bucket.parts}) == len(bucket.parts)
    assert sorted(numbers) == list(range(len(numbers)))
    assert len(numbers) > 20


@pytest.mark.parametrize("max_shard_bytes", [1, 400, 800, 1500, 5000, LARGE])
def test_shards_are_bounded_but_for_single_groups(max_shard_bytes: int) -> None:
    """A file exceeds the maximal size only where all of its tensors come from one source, and none is
    empty.
    """
    account_, plan = settle(DENSE), planned(DENSE, max_shard_bytes=max_shard_bytes)
    for shard in plan.shards:
        groups = {account_.sources_of[place.name] for place in shard.tensors}
        assert len(groups) >= 1
        assert shard.data_bytes <= max_shard_bytes or len(groups) == 1
    if max_shard_bytes == LARGE:
        assert len(plan.shards) == DENSE.num_layers + 2


def test_files_are_full_before_the_next_begins() -> None:
    """Within a layer, a file ends only where the next group of tensors would not fit any more."""
    limit = 1500
    account_, plan = settle(DENSE), planned(DENSE, max_shard_bytes=limit)
    for shard, following in itertools.pairwise(plan.shards):
        if shard.unit == following.unit:
            names = sorted((place.name for place in following.tensors), key=output_files.natural)
            first = account_.sources_of[names[0]]
            group = sum(p.spec.num_bytes for p in following.tensors if account_.sources_of[p.name] == first)
            assert shard.data_bytes + group > limit


def test_numbering_is_dense_and_in_unit_order() -> None:
    """Files are numbered from 1 without gaps, in the order embedding, layers by number, head; a file has one
    unit.
    """
    plan = planned(ToyDecoder(num_layers=11), max_shard_bytes=1500)
    total = len(plan.shards)
    assert [s.file for s in plan.shards] == [
        f"model-{number:05d}-of-{total:05d}.safetensors" for number in range(1, total + 1)
    ]
    units = list(dict.fromkeys(shard.unit for shard in plan.shards))
    assert units == ["embed", *(f"layer {number}" for number in range(11)), "head"]
    assert total > len(units)
    for shard in plan.shards:
        layers = {
            re.findall(r"layers\.(\d+)", place.name)[0] for place in shard.tensors if "layers" in place.name
        }
        assert layers == ({shard.unit.split()[1]} if shard.unit.startswith("layer") else set())


def test_stages_are_runs_of_units() -> None:
    """Shards walk through the stages in order, every stage has some, and a unit lies in one stage."""
    for num_stages in range(1, len(unit_bytes(settle(DENSE))) + 1):
        plan = planned(DENSE, RankGrid((1,) * num_stages), max_shard_bytes=1500)
        stages = [shard.stage for shard in plan.shards]
        assert stages == sorted(stages)
        assert set(stages) == set(range(num_stages))
        assert len({(shard.unit, shard.stage) for shard in plan.shards}) == len(unit_bytes(settle(DENSE)))


@pytest.mark.parametrize(("leaders", "num_leaders"), [(1, 1), (2, 2), (3, 3), (None, 4), (9, 4)])
def test_leaders_are_as_many_as_asked_and_in_their_stage(leaders: int | None, num_leaders: int) -> None:
    """Each stage has the leaders asked for (at most its ranks), who lead shards of that stage in equal
    shares.
    """
    grid = RankGrid((2, 2), 2)
    plan = planned(DENSE, grid, max_shard_bytes=600, leaders=leaders)
    led: defaultdict[int, list[int]] = defaultdict(list)
    for shard in plan.shards:
        assert shard.leader in grid.stage_ranks(shard.stage)
        led[shard.leader].append(shard.data_bytes)
    for stage in range(2):
        bytes_led = [sum(led[rank]) for rank in grid.stage_ranks(stage) if rank in led]
        assert len(bytes_led) == num_leaders
        assert max(bytes_led) - min(bytes_led) <= max(
            max(led[r]) for r in grid.stage_ranks(stage) if r in led
        )
    assert [shard for rank in range(8) for shard in plan.part_of(rank).led] == sorted(
        plan.shards, key=lambda shard: (shard.leader, shard.file)
    )


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_nobody_verifies_what_he_wrote(grid: RankGrid | int) -> None:
    """Each shard is re-read by a rank that did not write it, unless there is only one, in fair shares."""
    plan = planned(DENSE, grid, max_shard_bytes=600)
    verifiers = plan.verifiers()
    assert len(verifiers) == len(plan.shards)
    if plan.world_size == 1:
        assert set(verifiers) == {0}
        return
    assert all(reader != shard.leader for reader, shard in zip(verifiers, plan.shards))
    load: Counter[int] = Counter()
    for reader, shard in zip(verifiers, plan.shards):
        load[reader] += shard.num_bytes
    total, largest = sum(load.values()), max(shard.num_bytes for shard in plan.shards)
    assert plan.world_size == 2 or max(load.values()) <= total / (plan.world_size - 1) + largest


def test_ranks_read_their_own_part_of_the_grid() -> None:
    """Rank (t, e) reads the boxes of tensor part t and expert part e; with what is whole, none reads more
    than 20% above its share.
    """
    grid = RankGrid((1,), 2, 2)
    slices = MOE.slices(2)
    plan = planned(MOE, grid, slices)
    read: Counter[int] = Counter()
    for rank in range(grid.world_size):
        position = grid.position(rank)
        for _, part in parts_of(plan, rank):
            for slice_ in part.slices:
                read[rank] += slice_.num_bytes
                assert _tensor_part(slice_, slices[slice_.name]) in (None, position.tensor)
                expert = re.findall(r"experts\.(\d+)", slice_.name)
                assert not expert or int(expert[0]) // 3 == position.expert
    assert max(read.values()) <= 1.2 * sum(read.values()) / grid.world_size


@pytest.mark.parametrize("grid", [RankGrid((3, 2)), RankGrid((1,), 1, 3)], ids=str)
def test_leaders_of_a_grid_read_what_they_lead_where_they_may(grid: RankGrid) -> None:
    """Where no tensor part is asked for, files are led by who is dealt their experts, and next to nothing of
    what a leader may read is read by another.
    """
    toy = ToyDecoder(num_layers=6, num_experts=6)
    plan = planned(toy, grid, max_shard_bytes=2400, leaders=None)
    assert all(plan.part_of(rank).led for rank in range(grid.world_size))
    parts = [each for rank in range(grid.world_size) for each in parts_of(plan, rank)]
    sent = sum(s.num_bytes for shard, part in parts if part.rank != shard.leader for s in part.slices)
    assert sent < 0.1 * plan.total_size


def _tensor_part(slice_: Slice, stored: tuple[Slice, ...]) -> int | None:
    """The tensor parallel rank that stored the slice at size 2: boxes come rank by rank, for fc1 gate, then
    up.
    """
    if len(stored) == 1:
        return None
    return [box.item for box in stored].index(slice_.item) % 2


def test_memory_is_the_sum_of_what_is_held() -> None:
    """The planned peak is the base, what describes the work, two consecutive shards, and two rounds of what
    is read and arrives.
    """
    grid = RankGrid((1, 1), 2)
    plan = planned(DENSE, grid, DENSE.slices(2), max_shard_bytes=1500)
    for rank in range(grid.world_size):
        led = [pages(shard.data_bytes) for shard in plan.shards if shard.leader == rank]
        images = max((a + b for a, b in zip(led, [*led[1:], 0])), default=0)
        parts = [
            part for s in plan.shards for bucket in s.buckets for part in bucket.parts if part.rank == rank
        ]
        incoming = [
            sum(part.num_bytes for part in bucket.parts if part.rank != rank)
            for s in plan.shards
            for bucket in s.buckets
            if s.leader == rank
        ]
        read = [sum(pages(each.part.num_bytes) for each in r.gives) for r in plan.part_of(rank).rounds]
        assert sum(len(r.gives) for r in plan.part_of(rank).rounds) == len(parts)
        ahead = LOOK_AHEAD * max(read, default=0)
        arriving = LOOK_AHEAD * pages(max(incoming)) if any(incoming) else 0
        part = plan.part_of(rank)
        held = rank_plan.BASE_BYTES + rank_plan.TORCH_BYTES + part.metadata_bytes + images + ahead + arriving
        assert part.peak_bytes == held
        assert (images > 0) == (rank in (0, 2))
        sent = sum(
            slice_.num_bytes
            for s in plan.shards
            for b in s.buckets
            for p in b.parts
            for slice_ in p.slices
            if p.rank == rank != s.leader
        )
        assert plan.part_of(rank).sent_bytes == sent


def test_messages_are_packed_and_aligned() -> None:
    """A part's slices lie one after another at aligned offsets, and the last offset is the message's
    length.
    """
    plan = planned(MOE, RankGrid((1,), 2, 2), MOE.slices(2))
    for part in (part for shard in plan.shards for bucket in shard.buckets for part in bucket.parts):
        assert part.offsets[0] == 0
        assert part.num_bytes == part.offsets[-1]
        for slice_, begin, following in zip(part.slices, part.offsets, part.offsets[1:]):
            assert begin % ALIGNMENT == 0
            assert 0 <= following - begin - slice_.num_bytes < ALIGNMENT


def test_totals_are_those_of_the_model() -> None:
    """Total bytes and parameters count each tensor of the account once, without headers."""
    plan = planned(MOE, max_shard_bytes=900)
    specs = settle(MOE).outputs.values()
    assert plan.total_size == sum(spec.num_bytes for spec in specs)
    assert plan.total_parameters == sum(spec.num_elements for spec in specs)


def test_the_fingerprint_tells_plans_apart() -> None:
    """Equal inputs give equal fingerprints; another grid, slicing or shard size another one."""
    base = planned(DENSE, RankGrid((1, 1)))
    assert planned(DENSE, RankGrid((1, 1))).fingerprint == base.fingerprint
    others = [
        planned(DENSE, RankGrid((2,))),
        planned(DENSE, RankGrid((1, 1)), DENSE.slices(2)),
        planned(DENSE, RankGrid((1, 1)), max_shard_bytes=1500),
        planned(replace(DENSE, dtype="float16"), RankGrid((1, 1))),
    ]
    assert len({plan.fingerprint for plan in (base, *others)}) == 5


def test_every_process_comes_to_the_same_plan() -> None:
    """The plan doesn't depend on the hash seed of the process, so all ranks derive the same one."""
    code = (
        "from tests.cpu.planning.test_planner import *; import json;"
        "p = planned(MOE, RankGrid((1, 1), 2, 2), MOE.slices(2), max_shard_bytes=1500, leaders=None);"
        "print(json.dumps([p.fingerprint, p.verifiers(), [p.part_of(r).peak_bytes for r in range(8)]]))"
    )
    plan = planned(MOE, RankGrid((1, 1), 2, 2), MOE.slices(2), max_shard_bytes=1500, leaders=None)
    own = [plan.fingerprint, plan.verifiers(), [plan.part_of(rank).peak_bytes for rank in range(8)]]
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        answer = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=environment,
            check=True,
            capture_output=True,
            text=True,
        )
        assert json.loads(answer.stdout) == own


def count_lines(act: Callable[[], object]) -> int:
    """How many source lines of the package run while `act` runs."""
    counted = 0
    package = str(Path(pp_export.__file__).parent)

    def in_frame(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal counted
        counted += event == "line"
        return in_frame

    def on_call(frame: FrameType, event: str, argument: object) -> Any:
        return in_frame if frame.f_code.co_filename.startswith(package) else None

    before = sys.gettrace()
    sys.settrace(on_call)
    try:
        act()
    finally:
        sys.settrace(before)
    return counted


@pytest.mark.parametrize("ranks", [RankGrid((1, 1, 1, 1), 2, 2), 16], ids=["grid", "shared"])
def test_planning_is_linear_in_the_stored_boxes(ranks: RankGrid | int) -> None:
    """Twice the layers or the experts take twice the work, and few enough steps per box for a hundred
    thousand.
    """
    grid = None if isinstance(ranks, int) else ranks

    def work(num_layers: int, num_experts: int) -> tuple[int, int]:
        toy = ToyDecoder(num_layers=num_layers, num_experts=num_experts)
        specs, slices = toy.specs(), toy.slices(2)

        def act() -> None:
            settled = account(
                table_files.load(toy.table),
                specs,
                toy.sizes,
                expected=Expected(None, ""),
                drop_mtp=False,
            )
            plan = make_plan(settled, slices, 16, max_shard_bytes=LARGE, grid=grid)
            assert plan.fingerprint
            assert plan.part_of(0).peak_bytes

        return count_lines(act), sum(map(len, slices.values()))

    for sizes in (((32, 4), (64, 4)), ((2, 64), (2, 128))):
        (small, small_boxes), (large, large_boxes) = work(*sizes[0]), work(*sizes[1])
        assert large / small < 1.1 * large_boxes / small_boxes
        assert large / large_boxes < 200
