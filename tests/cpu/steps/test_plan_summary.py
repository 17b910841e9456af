"""Claims of `pp_export.steps.plan_summary`: numbers are those of the ranks, and who can't help is named."""

from __future__ import annotations

from statistics import median_low

import pytest

from pp_export.steps.plan_summary import named, notes_on, summarize
from tests.cpu.planning.test_assign_holders import Job, held
from tests.cpu.planning.test_planner import DENSE, MOE, parts_of, planned

NUM_FILES = DENSE.num_layers + 2


def test_a_summary_is_of_all_ranks() -> None:
    """Most and median are those of the ranks that take part, counted one by one; idle ones are named."""
    job = Job(tensor=2, pipeline=3, idle=2)
    plan = held(job, MOE, max_shard_bytes=1500)
    found = summarize(plan)
    read = [sum(s.num_bytes for _, part in parts_of(plan, r) for s in part.slices) for r in range(6)]
    written = [sum(shard.num_bytes for shard in plan.shards if shard.leader == rank) for rank in range(6)]
    assert (found.read_bytes.most, found.read_bytes.median) == (max(read), median_low(read))
    assert (found.written_bytes.most, found.written_bytes.median) == (max(written), median_low(written))
    assert (found.num_leaders, found.num_busy_ranks, found.idle_ranks) == (sum(map(bool, written)), 6, (6, 7))
    assert found.total_sent_bytes == sum(plan.part_of(rank).sent_bytes for rank in range(6)) > 0
    assert found.peak_bytes.most == max(plan.part_of(rank).peak_bytes for rank in range(6))
    assert (read[found.read_bytes.most_rank], read[found.read_bytes.median_rank]) == (
        max(read),
        median_low(read),
    )


@pytest.mark.parametrize("world_size", range(1, 20))
def test_the_number_of_ranks_that_is_enough_does_as_much(world_size: int) -> None:
    """With as many ranks as are busy, none is idle, and the most that one of them reads is the same."""
    found = summarize(planned(DENSE, world_size))
    assert found.num_busy_ranks == min(world_size, NUM_FILES)
    enough = summarize(planned(DENSE, found.num_busy_ranks))
    assert enough.idle_ranks == ()
    assert (enough.read_bytes.most, enough.read_bytes.median) == (
        found.read_bytes.most,
        found.read_bytes.median,
    )
    assert enough.written_bytes.most == found.written_bytes.most


def test_who_can_t_help_is_told_with_what_helps() -> None:
    """The note names idle ranks, why they are, how many verify, and what to do; not how many ranks a training
    job should have. Without idle ranks there is none.
    """
    assert notes_on(planned(DENSE, NUM_FILES), is_live=False) == ()
    assert notes_on(planned(DENSE, NUM_FILES + 2), is_live=False) == (
        "2 of 9 ranks have nothing to read or write (4, 8): there are 7 files, led by 7 ranks."
        " 1 of them re-read files if the export is verified. 7 ranks are enough, or a smaller max_shard_size"
        " makes more files.",
    )
    (note,) = notes_on(held(Job(replicas=9), DENSE), is_live=True)
    assert "enough" not in note
    assert note.endswith("verified. A smaller max_shard_size makes more files.")


def test_ranks_are_named_in_runs() -> None:
    """Neighbours are one range; of very many the first are named."""
    assert named([0, 3, 4, 5, 8]) == "0, 3-5, 8"
    assert named(range(1000)) == "0-999"
    assert named(range(0, 1000, 2)) == "0, 2, 4, 6, 8, 10, ..."
