"""Claims of `pp_export.planning.assign_holders`: who holds reads, each stored byte once, work is shared among
those who hold the same, few bytes travel and not far, and the files are those of any grid.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pp_export.architecture.units import Unit
from pp_export.core.dtypes import from_torch
from pp_export.core.tensors import Slice
from pp_export.planning import planner
from pp_export.planning.assign_holders import Holders, assign_holders, nearest_ranks
from pp_export.planning.assignment import Assignment, FileContent
from pp_export.planning.export_plan import ExportPlan
from pp_export.planning.planner import make_plan
from pp_export.planning.rank_grid import RankGrid
from tests.cpu.planning.test_planner import (
    DENSE,
    LARGE,
    MOE,
    Slices,
    count_lines,
    files_of,
    parts_of,
    planned,
    settle,
)
from tests.fixtures.boxes import whole
from tests.fixtures.catalogs import ToyDecoder

ROOT = Path(__file__).resolve().parents[3]
BF16 = from_torch("bfloat16")


@dataclass(frozen=True)
class Job:
    """A training job that holds a model: rank = (stage * replicas + replica) * tensor + part. Of `expert`
    replicas in turn, each has its share of the experts only.
    """

    tensor: int = 1
    replicas: int = 1
    expert: int = 1
    pipeline: int = 1
    virtual: int = 1
    idle: int = 0
    """Ranks at the end that hold nothing."""

    @property
    def num_ranks(self) -> int:
        return self.tensor * self.replicas * self.pipeline + self.idle

    def stage_of(self, name: str, toy: ToyDecoder) -> int:
        """Megatron's pipeline stage of a canonical tensor."""
        layer = re.findall(r"layers\.(\d+)", name)
        if not layer:
            return 0 if name.startswith("embedding") else self.pipeline - 1
        return int(layer[0]) * self.pipeline * self.virtual // toy.num_layers % self.pipeline

    def holders(self, toy: ToyDecoder) -> tuple[Slices, Holders]:
        """The slices, and for each record the ranks that hold it: one TP part or all, of every replica that
        has the expert.
        """
        slices = toy.slices(self.tensor)
        sets: dict[tuple[int, ...], int] = {}
        found: dict[int, int] = {}
        for name, of_tensor in slices.items():
            base = self.stage_of(name, toy) * self.replicas * self.tensor
            number = re.findall(r"experts\.(\d+)", name)
            owner = int(number[0]) * self.expert // toy.num_experts if number else None
            for at, slice_ in enumerate(of_tensor):
                part = at % self.tensor if len(of_tensor) > 1 else None
                ranks = tuple(
                    base + rank
                    for rank in range(self.replicas * self.tensor)
                    if part in (None, rank % self.tensor)
                    and owner in (None, rank // self.tensor % self.expert)
                )
                found[slice_.item] = sets.setdefault(ranks, len(sets))
        return slices, Holders(list(sets), [found[record] for record in range(len(found))])


JOBS = [
    Job(),
    Job(tensor=2),
    Job(replicas=3),
    Job(pipeline=3),
    Job(tensor=2, replicas=2, pipeline=3),
    Job(tensor=2, pipeline=3, idle=2),
    Job(pipeline=1, virtual=3, replicas=2),
    Job(pipeline=3, virtual=1, tensor=4, idle=1),
    Job(replicas=6, expert=3),
    Job(tensor=2, replicas=2, expert=2, pipeline=2),
]


def held(
    job: Job, toy: ToyDecoder = MOE, *, max_shard_bytes: int = LARGE, leaders: int | None = None
) -> ExportPlan:
    """The plan of a job that exports what it holds."""
    slices, holders = job.holders(toy)
    return make_plan(
        settle(toy),
        slices,
        job.num_ranks,
        max_shard_bytes=max_shard_bytes,
        leaders_per_stage=leaders,
        holders=holders,
    )


# --- the plan


@pytest.mark.parametrize("job", JOBS, ids=str)
@pytest.mark.parametrize("leaders", [1, 2, None])
def test_files_are_those_of_any_grid(job: Job, leaders: int | None) -> None:
    """Names, tensors, offsets and headers are the same whoever holds the values."""
    for toy, limit in itertools.product((DENSE, MOE), (1500, LARGE)):
        of_grid = files_of(planned(toy, RankGrid((2, 2)), max_shard_bytes=limit))
        assert files_of(held(job, toy, max_shard_bytes=limit, leaders=leaders)) == of_grid


@pytest.mark.parametrize("job", JOBS, ids=str)
@pytest.mark.parametrize("leaders", [1, None])
def test_every_stored_byte_is_read_once_by_one_holder_in_order(
    monkeypatch: pytest.MonkeyPatch, job: Job, leaders: int | None
) -> None:
    """Of every record each byte is read once, from first to last, by one of the ranks that hold it."""
    monkeypatch.setattr(planner, "BUCKET_BYTES", 200)
    slices, holders = job.holders(MOE)
    plan = held(job, max_shard_bytes=1500, leaders=leaders)
    ends: Counter[int] = Counter()
    reader: dict[int, int] = {}
    for rank in range(job.num_ranks):
        for _, part in parts_of(plan, rank):
            for slice_ in part.slices:
                assert rank in holders.sets[holders.set_of_item[slice_.item]]
                assert reader.setdefault(slice_.item, rank) == rank
                assert slice_.begin == ends[slice_.item]
                ends[slice_.item] += slice_.num_bytes
    assert ends == Counter({p.item: p.num_bytes for each in slices.values() for p in each})


@pytest.mark.parametrize("job", JOBS, ids=str)
def test_stages_are_those_of_the_job(job: Job) -> None:
    """A pipeline stage of the job, all TP parts and replicas of it, is one stage; virtual ones change
    nothing.
    """
    plan, size = held(job), job.tensor * job.replicas
    assert plan.stages == tuple(tuple(range(s * size, (s + 1) * size)) for s in range(job.pipeline))
    for shard in plan.shards:
        assert {job.stage_of(source, MOE) for source in shard.placements} == {shard.stage}
        assert shard.leader in plan.stages[shard.stage]


@pytest.mark.parametrize("leaders", [1, 2, 3, None])
def test_leaders_share_the_shards_of_their_stage(leaders: int | None) -> None:
    """As many ranks of a stage lead as asked, spread over it, and differ by one shard's bytes at most."""
    job = Job(tensor=2, replicas=2, pipeline=2)
    plan = held(job, DENSE, max_shard_bytes=600, leaders=leaders)
    led: Counter[int] = Counter()
    for shard in plan.shards:
        led[shard.leader] += shard.data_bytes
    largest = max(shard.data_bytes for shard in plan.shards)
    chosen = {1: [0], 2: [0, 2], 3: [0, 1, 2], None: [0, 1, 2, 3]}[leaders]
    for ranks in plan.stages:
        assert [rank for rank in ranks if led[rank]] == [ranks[at] for at in chosen]
        of_stage = [led[ranks[at]] for at in chosen]
        assert max(of_stage) - min(of_stage) <= largest


@pytest.mark.parametrize("replicas", [2, 4])
def test_replicas_export_side_by_side(replicas: int) -> None:
    """Each replica leads shards, and a leader takes all that it holds from itself: nothing is sent."""
    plan = held(Job(replicas=replicas), max_shard_bytes=600)
    assert [plan.part_of(rank).sent_bytes for rank in range(replicas)] == [0] * replicas
    assert all(plan.part_of(rank).read_bytes for rank in range(replicas))


@pytest.mark.parametrize("tensor", [2, 4])
def test_a_replica_needs_no_other(tensor: int) -> None:
    """A leader takes the other TP parts from its own replica, which may be its own node."""
    plan = held(Job(tensor=tensor, replicas=2), DENSE, max_shard_bytes=600)
    for shard in plan.shards:
        for rank in (part.rank for bucket in shard.buckets for part in bucket.parts):
            assert rank // tensor == shard.leader // tensor


def test_ranks_that_hold_nothing_take_no_part() -> None:
    """Ranks without slices are of no stage, read, lead and send nothing, and still re-read others' files."""
    job = Job(tensor=2, pipeline=3, idle=2)
    plan = held(job, max_shard_bytes=600)
    assert plan.world_size == 8
    assert plan.stage_of_rank.keys() == set(range(6))
    for rank in (6, 7):
        assert (parts_of(plan, rank), plan.part_of(rank).led) == ([], ())
        assert (plan.part_of(rank).read_bytes, plan.part_of(rank).sent_bytes) == (0, 0)
        assert plan.part_of(rank).peak_bytes < plan.part_of(0).peak_bytes
        assert rank in plan.verifiers()


SMALL_JOBS = [
    Job(tensor=4),
    Job(tensor=2, replicas=2),
    Job(replicas=4),
    Job(replicas=4, expert=2),
    Job(replicas=4, expert=4),
    Job(tensor=2, replicas=2, expert=2),
    Job(replicas=3, expert=3),
]


@pytest.mark.parametrize(
    ("num_experts", "limit"), [(6, 2000), (12, 2000), (12, 3500), (12, 5000), (6, LARGE)]
)
@pytest.mark.parametrize("job", SMALL_JOBS, ids=str)
def test_few_bytes_are_sent(job: Job, num_experts: int, limit: int) -> None:
    """No leader has more than 20% above a fair share; and of all ways to choose leaders under which none has
    more than that, none sends less than 1 / 1.2 of what the plan does.
    """
    toy = ToyDecoder(num_layers=1, num_experts=num_experts)
    slices, holders = job.holders(toy)
    plan = held(job, toy, max_shard_bytes=limit)
    sizes, sent = [shard.data_bytes for shard in plan.shards], []
    for shard in plan.shards:
        to_send = [0] * job.num_ranks
        for slice_ in itertools.chain.from_iterable(slices[source] for source in shard.placements):
            for rank in set(range(job.num_ranks)) - {*holders.sets[holders.set_of_item[slice_.item]]}:
                to_send[rank] += slice_.num_bytes
        sent.append(to_send)
    limit_led = 1.2 * max(*sizes, sum(sizes) / job.num_ranks)
    assert max(loads(sizes, [shard.leader for shard in plan.shards])) <= limit_led
    fewest = fewest_sent(sizes, sent, limit_led, [0] * job.num_ranks)
    assert num_sent(plan) <= 1.2 * fewest


def num_sent(plan: ExportPlan) -> int:
    """Bytes that ranks read for other leaders, without alignment."""
    parts = [each for rank in range(plan.world_size) for each in parts_of(plan, rank)]
    return sum(s.num_bytes for shard, part in parts if shard.leader != part.rank for s in part.slices)


def loads(sizes: Sequence[int], leaders: Sequence[int]) -> list[int]:
    found = Counter[int]()
    for size, leader in zip(sizes, leaders):
        found[leader] += size
    return list(found.values())


def fewest_sent(sizes: list[int], sent: list[list[int]], limit: float, led: list[int]) -> float:
    """The fewest bytes sent under any choice of leaders, by trying all; `sent` has them by file and rank."""
    if not sizes:
        return 0
    best = float("inf")
    for rank, load in enumerate(led):
        if load + sizes[0] <= limit:
            further = [*led[:rank], load + sizes[0], *led[rank + 1 :]]
            best = min(best, sent[0][rank] + fewest_sent(sizes[1:], sent[1:], limit, further))
    return best


def test_bytes_stay_on_their_node() -> None:
    """Experts of 16 ranks on two nodes of 8: a file of one node's experts is led there, and of a file of both
    no more crosses than must.
    """
    toy = ToyDecoder(num_layers=1, num_experts=32)
    plan = held(Job(replicas=16, expert=16), toy, max_shard_bytes=10_000)
    nodes: list[set[int]] = []
    for shard in plan.shards:
        experts = {int(n) for name in shard.placements for n in re.findall(r"experts\.(\d+)", name)}
        nodes.append({expert // 16 for expert in experts})
        here = sum(expert // 16 == shard.leader // 8 for expert in experts)
        assert 2 * here >= len(experts)
        readers = {part.rank for bucket in shard.buckets for part in bucket.parts}
        assert {rank // 8 for rank in readers} <= (nodes[-1] or {shard.leader // 8})
    assert {0} in nodes
    assert {1} in nodes
    assert {0, 1} in nodes


def test_planning_a_thousand_ranks_is_cheap() -> None:
    """128 replicas of 8 parts take as many steps as two do, but for the ranks themselves."""
    toy = ToyDecoder(num_layers=4, num_experts=32, heads=8, groups=8, ffn=16, hidden=32)

    def work(replicas: int) -> int:
        job = Job(tensor=8, replicas=replicas)
        slices, holders = job.holders(toy)
        return count_lines(
            lambda: make_plan(settle(toy), slices, job.num_ranks, max_shard_bytes=4000, holders=holders)
        )

    few, many = work(2), work(128)
    assert many < few + 30 * 1024


def test_the_plan_does_not_depend_on_how_holders_are_given() -> None:
    """Order, type and number of the sets are of no matter; other holders give another plan."""
    slices, holders = Job(tensor=2, replicas=2).holders(MOE)

    def fingerprint(given: Holders) -> str:
        return make_plan(settle(MOE), slices, 4, max_shard_bytes=1500, holders=given).fingerprint

    first, of_item = fingerprint(holders), holders.set_of_item
    assert fingerprint(Holders([[*reversed(ranks)] for ranks in holders.sets], of_item)) == first
    assert fingerprint(Holders([holders.sets[n] for n in of_item], range(len(of_item)))) == first
    assert fingerprint(Holders([range(4)], [0] * len(of_item))) != first


PROCESS = """
import json, sys
from pp_export.architecture import accounting, table_files
from pp_export.planning.assign_holders import Holders
from pp_export.planning.planner import make_plan
from tests.fixtures.catalogs import ToyDecoder
toy = ToyDecoder(num_layers=3, num_experts=6)
known = (table_files.load(toy.table), toy.specs(), toy.sizes)
account = accounting.account(*known, expected=accounting.Expected(None, ""), drop_mtp=False)
holders = Holders(*json.load(sys.stdin))
plan = make_plan(account, toy.slices(2), 12, max_shard_bytes=1500, holders=holders)
sys.stdout.write(plan.fingerprint)
"""


def test_every_process_comes_to_the_same_plan() -> None:
    """The plan doesn't depend on the hash seed of the process, so all ranks derive the same one."""
    job = Job(tensor=2, replicas=2, pipeline=3)
    own, (_, holders) = held(job, max_shard_bytes=1500).fingerprint, job.holders(MOE)
    for seed in ("1", "2"):
        answer = subprocess.run(
            [sys.executable, "-c", PROCESS],
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            input=json.dumps([holders.sets, holders.set_of_item]),
            check=True,
            capture_output=True,
            text=True,
        )
        assert answer.stdout == own


# --- the assignment


def assigned(*holders: Sequence[int], leaders: int | None = None) -> Assignment:
    """An assignment of one unit, one file and one record for each of these holders."""
    files = [
        FileContent(Unit(1, (n,), f"layer {n}"), 8, (Slice("w", whole((4,)), BF16, n),))
        for n in range(len(holders))
    ]
    return assign_holders(files, Holders(holders, range(len(holders))), leaders)


def test_units_with_common_holders_are_one_stage() -> None:
    """Stages are what hangs together, also where a later unit joins two earlier ones, in order of ranks."""
    found = assigned((4, 5), (0, 1), (6,), (2, 3), (3, 1))
    assert found.stages == ((0, 1, 2, 3), (4, 5), (6,))
    assert [found.stage_of[leader] for leader in found.leaders] == [1, 0, 2, 0, 0]
    both = FileContent(Unit(1, (0,), "layer 0"), 8, tuple(Slice("w", whole((4,)), BF16, n) for n in (0, 1)))
    other = FileContent(Unit(1, (1,), "layer 1"), 8, (Slice("w", whole((4,)), BF16, 2),))
    assert assign_holders([both, other], Holders([(0,), (1,), (2,)], [0, 1, 2]), None).stages == (
        (0, 1),
        (2,),
    )


@settings(deadline=None)
@given(st.lists(st.sets(st.integers(0, 7), min_size=1, max_size=3), min_size=1, max_size=8))
def test_stages_are_the_connected_parts(holders: list[set[int]]) -> None:
    """Each rank that holds something is of one stage, and two ranks of the same iff units connect them."""
    found = assigned(*map(tuple, holders))
    near: dict[int, set[int]] = {rank: {rank} for ranks in holders for rank in ranks}
    for _, ranks in itertools.product(range(8), holders):
        both = set().union(*(near[rank] for rank in ranks))
        near.update(dict.fromkeys(both, both))
    assert {frozenset(stage) for stage in found.stages} == {frozenset(ranks) for ranks in near.values()}
    assert sum(map(len, found.stages)) == len(near)
    for number, ranks in enumerate(holders):
        stage = set(found.stages[found.stage_of[found.leaders[number]]])
        assert ranks <= stage
        assert found.reader_of[number] in ranks


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 50))
def test_few_leaders_are_spread(size: int, leaders: int) -> None:
    """N leaders of a stage are N different ranks whose distances differ by one at most; the first is one."""
    ranks = tuple(range(3, 3 + size))
    chosen = sorted(set(assigned(*[ranks] * size, leaders=leaders).leaders))
    assert chosen[0] == 3
    assert len(chosen) == min(size, leaders)
    steps = [b - a for a, b in itertools.pairwise([*chosen, 3 + size])]
    assert max(steps) - min(steps) <= 1
    assert min(steps) >= 1


@settings(deadline=None)
@given(st.sets(st.integers(0, 40), min_size=1), st.integers(0, 40))
def test_the_nearest_are_those_with_the_fewest_low_bits_that_differ(ranks: set[int], to: int) -> None:
    """The rank itself, else those in the smallest aligned block of 2, 4, 8... ranks that has any."""
    distance = {rank: (rank ^ to).bit_length() for rank in ranks}
    nearest = [rank for rank in sorted(ranks) if distance[rank] == min(distance.values())]
    assert list(nearest_ranks(sorted(ranks), to)) == nearest


def test_the_nearest_holder_reads() -> None:
    """Of two holders as near to the leader, who has read less."""
    files = [
        FileContent(Unit(1, (0,), "layer 0"), 8, tuple(Slice("w", whole((4,)), BF16, n) for n in range(6)))
    ]
    found = assign_holders(files, Holders([(2,), (1, 3), (4, 5)], [0, 0, 1, 2, 2, 2]), 1)
    assert found.leaders == (1,)
    assert found.reader_of == {0: 2, 1: 2, 2: 1, 3: 4, 4: 5, 5: 4}


def test_a_record_has_one_reader() -> None:
    """A record of several files is read by the leader that needs the most of it among those that hold it."""
    rows = {0: 4, 1: 8, 2: 20}
    files = [
        FileContent(Unit(1, (n,), f"layer {n}"), 40, (Slice(f"w{n}", whole((size,)), BF16, 0),))
        for n, size in rows.items()
    ]
    found = assign_holders(files, Holders([(0, 1, 2)], [0]), None)
    assert found.leaders == (0, 1, 2)
    assert found.reader_of == {0: 2}


def test_a_leader_that_holds_a_record_reads_it_for_those_that_do_not() -> None:
    """Also where another leader needs more of it, and another holder is nearer to that one."""
    unit, whose = Unit(1, (0,), "layer 0"), {1: (0,), 2: (3,)}
    files = [
        FileContent(unit, 40, (Slice("w", whole((size,)), BF16, 0), Slice("v", whole((50,)), BF16, item)))
        for item, size in ((1, 4), (2, 20))
    ]
    found = assign_holders(files, Holders([(0, 2), *whose.values()], [0, 1, 2]), None)
    assert found.leaders == (0, 3)
    assert found.reader_of == {0: 0, 1: 0, 2: 3}
