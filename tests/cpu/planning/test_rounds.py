"""Claims of `pp_export.planning.rounds`: who exchanges, how much, and in which rounds."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest

from pp_export.planning import planner
from pp_export.planning.assign_holders import Holders
from pp_export.planning.export_plan import ExportPlan
from pp_export.planning.planner import make_plan
from pp_export.planning.rounds import LOOK_AHEAD
from pp_export.process.ring_buffer import pages
from tests.cpu.planning.test_planner import LARGE, MOE, planned, settle
from tests.fixtures.catalogs import ToyDecoder
from tests.fixtures.random_plans import dealt

RANDOM_PLANS = range(25)


@pytest.fixture(params=RANDOM_PLANS)
def plan(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ExportPlan:
    """A plan of one to seven ranks, of which any lead and any read."""
    monkeypatch.setattr(planner, "BUCKET_BYTES", 300)
    numbers = random.Random(request.param)
    return dealt(planned(MOE, slices=MOE.slices(2), max_shard_bytes=2000), numbers.randint(1, 7), numbers)


def test_a_round_is_the_next_bucket_of_every_leader(plan: ExportPlan) -> None:
    """In round n each leader of a group takes its n-th bucket, and every contribution to it is given then, by
    who reads it; a rank that neither gives nor takes has no such round.
    """
    for group in (*plan.groups, *({(rank,) for rank in range(plan.world_size)} - {*plan.groups})):
        led = {rank: [b for shard in plan.part_of(rank).led for b in shard.buckets] for rank in group}
        for rank in group if plan.part_of(group[0]).group == group else ():
            rounds = plan.part_of(rank).rounds
            assert [each.number for each in rounds] == sorted({each.number for each in rounds})
            assert [each.takes.bucket for each in rounds if each.takes] == led[rank]
            for each in rounds:
                assert each.takes is None or each.takes.bucket is led[rank][each.number]
                assert each.takes or each.gives
                for given_ in each.gives:
                    bucket = led[given_.shard.leader][each.number]
                    assert given_.part in bucket.parts
                    assert given_.part.rank == rank
    given_once = Counter(id(given_.part) for part in plan.parts for r in part.rounds for given_ in r.gives)
    parts = [id(part) for shard in plan.shards for bucket in shard.buckets for part in bucket.parts]
    assert given_once == Counter(parts)


def test_links_are_the_bytes_that_are_read_elsewhere(plan: ExportPlan) -> None:
    """A link has exactly the bytes of the slices that its sender reads and its receiver leads, and what a
    rank sends is the sum of its links; the rest goes over no wire.
    """
    needed: Counter[tuple[int, int]] = Counter()
    local = 0
    for shard in plan.shards:
        for part in (part for bucket in shard.buckets for part in bucket.parts):
            num_bytes = sum(slice_.num_bytes for slice_ in part.slices)
            if part.rank == shard.leader:
                local += num_bytes
            else:
                needed[part.rank, shard.leader] += num_bytes
    assert plan.links == dict(needed)
    for rank in range(plan.world_size):
        assert plan.part_of(rank).sent_bytes == sum(n for (sender, _), n in needed.items() if sender == rank)
    read = sum(plan.part_of(rank).read_bytes for rank in range(plan.world_size))
    assert read == local + sum(plan.links.values())


def test_arrivals_have_places_of_their_own(plan: ExportPlan) -> None:
    """What arrives in a round lies one after another in exactly the memory that the plan counts for it."""
    for rank in range(plan.world_size):
        arriving = outgoing = 0
        for each in plan.part_of(rank).rounds:
            end = 0
            for arrival in each.arrivals:
                assert arrival.begin == end
                assert arrival.part.rank != rank
                end += arrival.part.num_bytes
            assert each.incoming_bytes == end
            arriving = max(arriving, end)
            sent = [g.part.num_bytes for g in each.gives if g.shard.leader != rank]
            outgoing = max(outgoing, sum(sent))
        assert plan.part_of(rank).arriving_bytes == arriving
        assert plan.part_of(rank).outgoing_bytes == outgoing
        assert plan.part_of(rank).incoming_bytes == (LOOK_AHEAD * pages(arriving) if arriving else 0)


def test_a_rank_reads_two_rounds_at_most_ahead(plan: ExportPlan) -> None:
    """Memory for reading is that of the largest round, twice: one that travels, one that is being read."""
    for rank in range(plan.world_size):
        rounds = [sum(pages(g.part.num_bytes) for g in each.gives) for each in plan.part_of(rank).rounds]
        assert plan.part_of(rank).ahead_bytes == LOOK_AHEAD * max(rounds, default=0)


@pytest.mark.parametrize("size", [4, 8])
def test_leaders_don_t_ask_the_same_rank_at_once(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Where experts lie on different ranks and all lead, the busiest ranks of all rounds together have little
    more to send or to take than one rank has in all.
    """
    monkeypatch.setattr(planner, "BUCKET_BYTES", 2000)
    toy = ToyDecoder(num_layers=2 * size, num_experts=4 * size)
    slices = toy.slices()
    holders: dict[int, tuple[int, ...]] = {}
    for name, of_tensor in slices.items():
        expert = re.findall(r"experts\.(\d+)", name)
        ranks = (int(expert[0]) // 4,) if expert else tuple(range(size))
        holders |= dict.fromkeys((slice_.item for slice_ in of_tensor), ranks)
    sets = [holders[item] for item in sorted(holders)]
    plan = make_plan(
        settle(toy), slices, size, max_shard_bytes=LARGE, holders=Holders(sets, range(len(sets)))
    )
    busiest: Counter[int] = Counter()
    in_all: Counter[tuple[int, str]] = Counter()
    for rank in range(size):
        for each in plan.part_of(rank).rounds:
            sent = sum(given.part.value_bytes for given in each.gives if given.shard.leader != rank)
            taken = sum(arrival.part.value_bytes for arrival in each.arrivals)
            busiest[each.number] = max(busiest[each.number], sent, taken)
            in_all.update({(rank, "sent"): sent, (rank, "taken"): taken})
    assert sum(busiest.values()) < 2 * max(in_all.values())


def test_a_rank_alone_has_rounds_of_its_own() -> None:
    """Where nothing is sent there are no groups, and a rank's rounds are its buckets."""
    plan = planned(MOE, slices=MOE.slices(2))
    assert (plan.groups, plan.links, plan.part_of(0).group) == ((), {}, (0,))
    buckets = [bucket for shard in plan.shards for bucket in shard.buckets]
    assert [each.takes.bucket for each in plan.part_of(0).rounds if each.takes] == buckets
