"""Claims of `pp_export.planning.assign_shared`: any number of ranks is used as far as there are files, none
reads what it doesn't lead, and what crosses is the least.
"""

from __future__ import annotations

import itertools
from collections import Counter
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pp_export.architecture.units import Unit
from pp_export.core.dtypes import from_torch
from pp_export.core.tensors import Slice
from pp_export.planning.assign_shared import assign_shared
from pp_export.planning.assignment import FileContent
from pp_export.planning.export_plan import ExportPlan
from tests.cpu.planning.test_planner import parts_of, planned
from tests.fixtures.boxes import whole
from tests.fixtures.catalogs import ToyDecoder

LAYERS_28 = ToyDecoder(num_layers=28, vocab=160, padded_vocab=160)
LAYERS_94 = ToyDecoder(num_layers=94, num_experts=4)
FLOAT = from_torch("float32")


def content(number: int, num_bytes: int, items: dict[int, int]) -> FileContent:
    """A file that takes so many bytes of each item."""
    slices = tuple(Slice(f"w{item}", whole((size // 4,)), FLOAT, item) for item, size in items.items())
    return FileContent(Unit(1, (number,), f"layer {number}"), num_bytes, slices)


def separate(*sizes: int) -> list[FileContent]:
    """Files that have no item in common."""
    return [content(number, size, {number: size}) for number, size in enumerate(sizes)]


def led(plan: ExportPlan) -> list[int]:
    return [sum(shard.data_bytes for shard in plan.part_of(rank).led) for rank in range(plan.world_size)]


@cache
def fewest_runs(sizes: tuple[int, ...], limit: int) -> int:
    """How many runs of at most `limit` there must be, by trying every end of the first."""
    if not sizes:
        return 0
    ends = [end for end in range(1, len(sizes) + 1) if sum(sizes[:end]) <= limit]
    return 1 + min(fewest_runs(sizes[end:], limit) for end in ends)


def lightest(sizes: tuple[int, ...], num_runs: int) -> int:
    """The lightest that the heaviest of so many consecutive runs can be."""
    sums = sorted({sum(sizes[a:b]) for a, b in itertools.combinations(range(len(sizes) + 1), 2)})
    return next(total for total in sums if total >= max(sizes) and fewest_runs(sizes, total) <= num_runs)


@pytest.mark.parametrize("world_size", range(1, 65))
def test_no_world_size_is_a_cliff(world_size: int) -> None:
    """Of 28 layers, embedding and head, with any number of ranks: as many lead as there can be, nobody leads
    more than the best of all divisions asks, nobody reads what it doesn't lead, and nothing is sent.
    """
    plan = planned(LAYERS_28, world_size)
    sizes = tuple(shard.data_bytes for shard in plan.shards)
    assert max(led(plan)) == lightest(sizes, min(world_size, len(sizes)))
    assert sum(map(bool, led(plan))) == min(world_size, len(sizes))
    assert {part.rank == shard.leader for r in range(world_size) for shard, part in parts_of(plan, r)} == {
        True
    }
    assert sum(part.sent_bytes for part in plan.parts) == 0
    assert plan.stages == tuple((rank,) for rank in range(world_size) if rank not in plan.idle_ranks)


@pytest.mark.parametrize("world_size", [89, 96, 97, 101])
def test_a_prime_number_of_ranks_is_as_good_as_any(world_size: int) -> None:
    """A model of 94 layers is led by all of 89 ranks, and by 96 of 97 or 101."""
    plan = planned(LAYERS_94, world_size)
    assert len(plan.shards) == 96
    assert len(plan.idle_ranks) == max(0, world_size - 96)
    largest_two = 2 * max(shard.data_bytes for shard in plan.shards if "layer" in shard.unit)
    assert max(led(plan)) <= (largest_two if world_size < 96 else max(s.data_bytes for s in plan.shards))


@pytest.mark.parametrize(("num_files", "world_size"), [(1, 4), (2, 8), (3, 16), (5, 7)])
def test_few_leaders_are_spread_over_the_ranks(num_files: int, world_size: int) -> None:
    """With fewer files than ranks, the distances of the leaders differ by one at most."""
    found = assign_shared(separate(*[8] * num_files), world_size)
    assert len(set(found.leaders)) == num_files
    distances = [b - a for a, b in itertools.pairwise([*found.leaders, world_size])]
    assert max(distances) - min(distances) <= 1
    assert min(distances) >= 1


def test_a_folder_of_few_files_is_led_by_all() -> None:
    """Four legacy files (TP2 PP2), in which each rank's tensors are, read by four ranks: all of them lead,
    and each reads only what it leads, whatever file that lies in.
    """
    plan = planned(ToyDecoder(num_layers=4), 4, ToyDecoder(num_layers=4).slices(2))
    assert all(led(plan))
    assert all(shard.leader == part.rank for shard in plan.shards for b in shard.buckets for part in b.parts)
    assert [plan.part_of(rank).sent_bytes for rank in range(4)] == [0] * 4


def test_runs_end_where_items_do_if_that_is_as_even() -> None:
    """Two files share an item. Where the runs are within 20% as light without cutting between them, nothing
    is sent; else one rank reads the item, and both leaders are of one stage.
    """
    for num_files, stages in ((10, ((0,), (1,))), (8, ((0, 1),))):
        files, middle = separate(*[8] * num_files), num_files // 2
        assert assign_shared(files, 2).leaders.count(0) == middle
        files[middle] = content(middle, 8, {middle - 1: 8})
        found = assign_shared(files, 2)
        assert found.stages == stages
        assert (found.leaders.count(0) == middle) == (len(stages) == 1)
        assert found.reader_of[middle - 1] == found.leaders[middle - 1]


ITEMS = st.dictionaries(st.integers(0, 6), st.sampled_from([4, 8, 40]), min_size=1, max_size=3)


@settings(deadline=None)
@given(st.lists(ITEMS, min_size=1, max_size=8), st.integers(1, 10))
def test_an_item_has_one_reader_which_leads_the_most_of_it(
    items_of: list[dict[int, int]], world_size: int
) -> None:
    """Whatever items files share: one reader each, of the leaders that need it, in one stage with them;
    nobody who leads nothing reads; and no run is more than 20% heavier than the best.
    """
    files = [content(number, sum(items.values()), items) for number, items in enumerate(items_of)]
    found = assign_shared(files, world_size)
    sizes: Counter[tuple[int, int]] = Counter()
    loads: Counter[int] = Counter()
    for file, items, leader in zip(files, items_of, found.leaders):
        loads[leader] += file.num_bytes
        for item, size in items.items():
            sizes[item, leader] += size
            assert found.stage_of[found.reader_of[item]] == found.stage_of[leader]
    for item, reader in found.reader_of.items():
        assert sizes[item, reader] == max(size for (other, _), size in sizes.items() if other == item)
    assert list(found.leaders) == sorted(found.leaders)
    assert {rank for stage in found.stages for rank in stage} == set(found.leaders)
    best = lightest(tuple(file.num_bytes for file in files), min(world_size, len(files)))
    assert 5 * max(loads.values()) <= 6 * best
