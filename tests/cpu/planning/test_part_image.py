"""Claims of `pp_export.planning.part_image`: a rank gets what was planned for it, and nothing else."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest

from pp_export.core.tensors import Slice
from pp_export.planning import part_image, planner
from pp_export.planning.export_plan import ExportPlan
from pp_export.planning.rank_plan import RankPlan
from pp_export.planning.shard_plan import Bucket, Contribution, ShardPlan
from tests.cpu.planning.test_planner import DENSE, MOE, planned
from tests.fixtures.random_plans import dealt
from tests.fixtures.ranges import cut_finely


@pytest.fixture(params=range(25))
def plan(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ExportPlan:
    """A plan of one to seven ranks, of which any lead and any read; some cast, some with files in ranges."""
    monkeypatch.setattr(planner, "BUCKET_BYTES", 300)
    numbers = random.Random(request.param)
    if request.param % 3 == 0:
        with cut_finely():
            return planned(DENSE, numbers.randint(2, 7), DENSE.slices(2))
    toy = MOE if request.param % 3 == 1 else DENSE
    return dealt(planned(toy, slices=toy.slices(2), max_shard_bytes=2000), numbers.randint(1, 7), numbers)


def renumbered(part: RankPlan) -> RankPlan:
    """The same part, whose slices name items as a catalog of what it reads does; others' name none."""
    numbers = {item: number for number, item in enumerate(part.items)}

    def slice_of(slice_: Slice) -> Slice:
        return slice_._replace(item=numbers.get(slice_.item, -1))

    def contribution(each: Contribution) -> Contribution:
        return Contribution(each.rank, tuple(map(slice_of, each.slices)))

    def shard(each: ShardPlan) -> ShardPlan:
        buckets = (Bucket(b.number, tuple(map(contribution, b.parts))) for b in each.buckets)
        return replace(each, buckets=tuple(buckets))

    led = {id(each): shard(each) for each in part.led}
    rounds = []
    for each in part.rounds:
        gives = tuple(given._replace(part=contribution(given.part)) for given in each.gives)
        takes = each.takes
        if takes is not None:
            made = led[id(takes.shard)]
            bucket = next(b for b in made.buckets if b.number == takes.bucket.number)
            takes = takes._replace(shard=made, bucket=bucket)
        rounds.append(replace(each, gives=gives, takes=takes))
    return replace(part, led=tuple(led.values()), rounds=tuple(rounds))


def test_a_part_survives_the_way_to_its_rank(plan: ExportPlan) -> None:
    """Everything of a part arrives, equal in every field, with items numbered anew."""
    for part in plan.parts:
        received = part_image.from_bytes(part_image.to_bytes(part), plan.fingerprint)
        assert received == renumbered(part)
        assert received.items == tuple(range(len(part.items)))
        for name in ("image_bytes", "ahead_bytes", "incoming_bytes", "scratch_bytes", "peak_bytes"):
            assert getattr(received, name) == getattr(part, name)


def test_buckets_are_those_of_their_shards(plan: ExportPlan) -> None:
    """A round takes the very bucket that its shard has, and gives the very part of it that is its own: who
    works with them compares by identity.
    """
    for part in plan.parts:
        received = part_image.from_bytes(part_image.to_bytes(part), "")
        for each in received.rounds:
            if each.takes is None:
                continue
            assert any(each.takes.bucket is bucket for bucket in each.takes.shard.buckets)
            assert any(each.takes.shard is shard for shard in received.led)
            own = [given.part for given in each.gives if given.shard.leader == part.rank]
            assert all(any(one is other for other in each.takes.bucket.parts) for one in own)


def test_the_bytes_are_json_of_the_part_alone(plan: ExportPlan) -> None:
    """A rank that leads, reads and verifies nothing gets next to nothing, and no part names a tensor of
    which its rank reads nothing and makes nothing.
    """
    for part in plan.parts:
        image = part_image.to_bytes(part)
        json.loads(image)
        if part.is_idle and not part.to_verify:
            assert len(image) < 200
        own = {slice_.name for each in part.parts for slice_ in each.slices}
        own |= {source for shard in part.led for source in shard.placements}
        others = {source for shard in plan.shards for source in shard.placements} - own
        assert not any(f'"{name}"'.encode() in image for name in others)
