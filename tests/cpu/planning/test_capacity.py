"""Claims of `pp_export.planning.capacity`, as `rank_plan` uses it: threads and memory decide how many shards
are in flight, and so the planned peak.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from pp_export.planning import rank_plan
from pp_export.planning.capacity import Capacity
from pp_export.planning.rank_plan import RankPlan
from pp_export.process.ring_buffer import pages
from tests.cpu.planning.test_planner import DENSE, planned


@pytest.fixture
def part() -> RankPlan:
    """The part of a rank that is alone, with several shards."""
    part = planned(DENSE, 1, max_shard_bytes=1500).part_of(0)
    assert len(part.led) > 5
    return part


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_one_shard_more_than_threads_is_in_flight(part: RankPlan, threads: int) -> None:
    """Each thread has a shard to hash and write while one more is filled; memory is that of the largest so
    many consecutive ones, and of a round for each thread that reads and one more.
    """
    fitted = replace(part, capacity=Capacity(threads))
    assert fitted.shards_in_flight == threads + 1
    sizes = [pages(shard.image_bytes) for shard in part.led]
    assert fitted.image_bytes == max(sum(sizes[i : i + threads + 1]) for i in range(len(sizes)))
    assert fitted.rounds_ahead == max(2, threads + 1)
    assert fitted.peak_bytes - fitted.image_bytes - fitted.ahead_bytes == part.peak_bytes - (
        part.image_bytes + part.ahead_bytes
    )


def test_no_more_shards_are_in_flight_than_there_are(part: RankPlan) -> None:
    """A rank with few shards and many cores plans memory for its shards alone."""
    fitted = replace(part, capacity=Capacity(64))
    assert fitted.shards_in_flight == len(part.led)
    assert fitted.image_bytes == sum(pages(shard.image_bytes) for shard in part.led)


def test_a_memory_limit_takes_shards_out_of_flight_but_the_last(part: RankPlan) -> None:
    """The most shards are in flight that keep the planned peak within the limit; at least one is."""
    free = [replace(part, capacity=Capacity(4)).peak_bytes]
    for expected in (4, 3, 2):
        fitted = replace(part, capacity=Capacity(4, free[-1] - 1))
        assert fitted.shards_in_flight == expected
        assert fitted.peak_bytes < free[-1]
        free.append(fitted.peak_bytes)
    assert replace(part, capacity=Capacity(4, 1)).shards_in_flight == 1


def test_only_ranks_that_exchange_or_encode_need_torch(part: RankPlan) -> None:
    """The memory of the library is planned where it is imported."""
    assert part.base_bytes == rank_plan.BASE_BYTES
    assert planned(DENSE, 2).part_of(0).base_bytes == rank_plan.BASE_BYTES + rank_plan.TORCH_BYTES
