"""Claims of `pp_export.planning.assignment` and `pp_export.checkpoint.catalog.holders_of`: who may read
reads, each stored byte once, work is shared among those who hold the same, and the files are those of any
grid.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pp_export.architecture.units import Unit
from pp_export.checkpoint.catalog import Catalog, Description, StoredItem, holders_of
from pp_export.core.dtypes import from_torch
from pp_export.core.tensors import Slice
from pp_export.planning import planner
from pp_export.planning.assignment import HolderAssignment
from pp_export.planning.export_plan import ExportPlan
from pp_export.planning.planner import make_plan
from pp_export.planning.rank_grid import RankGrid
from tests.cpu.planning.test_planner import DENSE, LARGE, MOE, Slices, files_of, planned, settle
from tests.fixtures.boxes import whole
from tests.fixtures.catalogs import ToyDecoder

ROOT = Path(__file__).resolve().parents[3]
FIRST, SECOND, THIRD = tuple(Unit(1, (n,), f"layer {n}") for n in range(3))
BF16 = from_torch("bfloat16")


@dataclass(frozen=True)
class Job:
    """A training job that holds a model: rank = (stage * replicas + replica) * tensor + part."""

    tensor: int = 1
    replicas: int = 1
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

    def holders(self, toy: ToyDecoder) -> tuple[Slices, list[list[int]]]:
        """The slices, and for each record the ranks that hold it: one TP part or all, of every replica."""
        slices = toy.slices(self.tensor)
        found: dict[int, list[int]] = {}
        for name, of_tensor in slices.items():
            base = self.stage_of(name, toy) * self.replicas * self.tensor
            ranks = range(base, base + self.replicas * self.tensor)
            for number, slice_ in enumerate(of_tensor):
                is_cut = len(of_tensor) > 1
                part = number % self.tensor if is_cut else None
                found[slice_.item] = [r for r in ranks if part in (None, r % self.tensor)]
        return slices, [found[record] for record in range(len(found))]


JOBS = [
    Job(),
    Job(tensor=2),
    Job(replicas=3),
    Job(pipeline=3),
    Job(tensor=2, replicas=2, pipeline=3),
    Job(tensor=2, pipeline=3, idle=2),
    Job(pipeline=1, virtual=3, replicas=2),
    Job(pipeline=3, virtual=1, tensor=4, idle=1),
]


def held(
    job: Job, toy: ToyDecoder = MOE, *, max_shard_bytes: int = LARGE, leaders: int | None = None
) -> ExportPlan:
    """The plan of a job that exports what it holds."""
    slices, holders = job.holders(toy)
    return make_plan(
        settle(toy),
        slices,
        RankGrid(1, 1, 1, job.num_ranks),
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
        of_grid = files_of(planned(toy, RankGrid(2, 1, 1, 2), max_shard_bytes=limit))
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
        for _, _, part in plan.parts_of(rank):
            for slice_ in part.slices:
                assert rank in holders[slice_.item]
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
    assert [plan.sent_bytes(rank) for rank in range(replicas)] == [0] * replicas
    assert all(plan.read_bytes(rank) for rank in range(replicas))


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
        assert (plan.parts_of(rank), plan.led_by(rank)) == ([], [])
        assert (plan.read_bytes(rank), plan.sent_bytes(rank)) == (0, 0)
        assert plan.peak_bytes(rank) < plan.peak_bytes(0)
        assert rank in plan.verifiers()


def test_the_plan_does_not_depend_on_how_holders_are_given() -> None:
    """Order and type of the ranks of a record are of no matter; other holders give another plan."""
    job = Job(tensor=2, replicas=2)
    slices, holders = job.holders(MOE)

    def fingerprint(given: Sequence[Sequence[int]]) -> str:
        plan = make_plan(
            settle(MOE),
            slices,
            RankGrid(1, 1, 1, 4),
            max_shard_bytes=1500,
            leaders_per_stage=None,
            holders=given,
        )
        return plan.fingerprint

    first = fingerprint(holders)
    assert fingerprint([tuple(reversed(ranks)) for ranks in holders]) == first
    assert fingerprint([range(4) for _ in holders]) != first


PROCESS = """
import json, sys
from pp_export.architecture import accounting, table_files
from pp_export.planning.planner import make_plan
from pp_export.planning.rank_grid import RankGrid
from tests.fixtures.catalogs import ToyDecoder
toy = ToyDecoder(num_layers=3, num_experts=6)
known = (table_files.load(toy.table), toy.specs(), toy.sizes)
account = accounting.account(*known, expected=None, truth="", dtype=None, drop_mtp=False)
plan = make_plan(account, toy.slices(2), RankGrid(1, 1, 1, 12), max_shard_bytes=1500, leaders_per_stage=None,
                 holders=json.load(sys.stdin))
sys.stdout.write(plan.fingerprint)
"""


def test_every_process_comes_to_the_same_plan() -> None:
    """The plan doesn't depend on the hash seed of the process, so all ranks derive the same one."""
    job = Job(tensor=2, replicas=2, pipeline=3)
    own = held(job, max_shard_bytes=1500).fingerprint
    for seed in ("1", "2"):
        answer = subprocess.run(
            [sys.executable, "-c", PROCESS],
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            input=json.dumps(job.holders(MOE)[1]),
            check=True,
            capture_output=True,
            text=True,
        )
        assert answer.stdout == own


# --- the assignment


def assignment(*holders: Sequence[int], leaders: int | None = None) -> HolderAssignment:
    """A assignment of one unit per record."""
    return HolderAssignment(holders, {Unit(1, (n,), f"layer {n}"): [n] for n in range(len(holders))}, leaders)


def test_units_with_common_holders_are_one_stage() -> None:
    """Stages are what hangs together, also where a later unit joins two earlier ones, in order of ranks."""
    found = assignment((4, 5), (0, 1), (6,), (2, 3), (3, 1))
    assert found.stages == ((0, 1, 2, 3), (4, 5), (6,))
    assert [found.stage_of[unit] for unit in sorted(found.stage_of)] == [1, 0, 2, 0, 0]
    apart = HolderAssignment([(0,), (1,), (2,)], {FIRST: [0, 1], SECOND: [2]}, None)
    assert apart.stages == ((0, 1), (2,))


@given(st.lists(st.sets(st.integers(0, 7), min_size=1, max_size=3), min_size=1, max_size=8))
def test_stages_are_the_connected_parts(holders: list[set[int]]) -> None:
    """Each rank that holds something is of one stage, and two ranks of the same iff units connect them."""
    found = assignment(*map(tuple, holders))
    near: dict[int, set[int]] = {rank: {rank} for ranks in holders for rank in ranks}
    for _, ranks in itertools.product(range(8), holders):
        both = set().union(*(near[rank] for rank in ranks))
        near.update(dict.fromkeys(both, both))
    assert {frozenset(stage) for stage in found.stages} == {frozenset(ranks) for ranks in near.values()}
    assert sum(map(len, found.stages)) == len(near)
    for unit, stage in found.stage_of.items():
        assert holders[unit.numbers[0]] <= set(found.stages[stage])


@given(st.integers(1, 40), st.integers(1, 50))
def test_leaders_are_spread(size: int, leaders: int) -> None:
    """N leaders of a stage are N different ranks whose distances differ by one at most; the first is one."""
    ranks = tuple(range(3, 3 + size))
    chosen = list(assignment(ranks, leaders=leaders).leaders(0))
    assert chosen[0] == 3
    assert len(set(chosen)) == len(chosen) == min(size, leaders)
    steps = [b - a for a, b in itertools.pairwise([*chosen, 3 + size])]
    assert max(steps) - min(steps) <= 1
    assert min(steps) >= 1


def test_the_leader_of_the_fewest_bytes_leads_next() -> None:
    """Shards go to leaders by bytes, not in turn; each stage counts for itself."""
    both = assignment((0, 1), (2, 3))
    assert [both.lead(0, n) for n in (5, 1, 3, 2, 1, 1)] == [0, 1, 1, 1, 0, 0]
    assert [both.lead(1, n) for n in (1, 1, 1)] == [2, 3, 2]


def piece_of(record: int, rows: int = 4) -> Slice:
    return Slice("w", whole((rows,)), BF16, record)


def test_the_nearest_holder_reads() -> None:
    """The leader where it holds the slice, else who is nearest in nodes of 2, 4, 8 ranks; of two as near, who
    has read less.
    """
    one = assignment((0, 2, 4, 6), (1, 3), (4, 5), (4, 5), (0, 7))
    assert one.owner(0, 4, (4,), piece_of(0)) == 4
    assert one.owner(0, 2, (4,), piece_of(1)) == 3
    assert [one.owner(0, 2, (4,), piece_of(record)) for record in (2, 3)] == [5, 4]
    assert one.owner(0, 4, (4,), piece_of(4)) == 7


def test_a_record_stays_with_one_reader() -> None:
    """Further slices of a record go to who read its first, whoever leads then: its checksum runs along."""
    one = assignment((0, 1, 2, 3))
    assert [one.owner(0, leader, (4,), piece_of(0)) for leader in (3, 0, 1)] == [3, 3, 3]


# --- who can read a file


def catalog(
    num_files: int, of_ranks: bool = True, holders: tuple[tuple[int, ...], ...] | None = None
) -> Catalog:
    """A catalog with three items in each file."""
    items = tuple(StoredItem(file, 0, 8) for file in range(num_files) for _ in range(3))
    about = Description("", "", "", None, None, {}, {})
    return Catalog(about, tuple(map(str, range(num_files))), items, (), holders, of_ranks)


@pytest.mark.parametrize(
    ("num_files", "world_size", "readers"),
    [
        (3, 3, [[0], [1], [2]]),
        (5, 2, [[0], [0], [0], [1], [1]]),
        (4, 1, [[0], [0], [0], [0]]),
    ],
)
def test_files_of_ranks_go_to_ranks_in_order(
    num_files: int, world_size: int, readers: list[list[int]]
) -> None:
    """As many ranks as files get one each, fewer take several; all records of a file go along."""
    found = holders_of(catalog(num_files), world_size)
    assert found is not None
    assert [list(ranks) for ranks in found] == [ranks for ranks in readers for _ in range(3)]


@given(st.integers(1, 30), st.integers(1, 30))
def test_files_are_shared_evenly(num_files: int, world_size: int) -> None:
    """Every rank reads some file, none two more than another, and a file has one reader."""
    found = holders_of(catalog(num_files), world_size)
    if world_size > num_files:
        assert found is None, "the export's own grid deals then"
        return
    assert found is not None
    files: defaultdict[int, set[int]] = defaultdict(set)
    for record, ranks in zip(catalog(num_files).stored_items, found):
        for rank in ranks:
            files[rank].add(record.file)
    loads = [len(files[rank]) for rank in range(world_size)]
    assert min(loads) >= 1
    assert max(loads) - min(loads) <= 1
    assert {len(ranks) for ranks in found} == {1}


def test_formats_that_anybody_can_read_have_no_holders() -> None:
    """DCP files are dealt by a grid, whatever their number; a live model's slices by who holds them."""
    assert holders_of(catalog(4, of_ranks=False), 4) is None
    live = catalog(2, False, ((0, 2), (1,)))
    assert holders_of(live, 3) == [(0, 2)] * 3 + [(1,)] * 3


def test_a_unit_of_one_file_needs_no_other_rank() -> None:
    """Ranks that read files of different units never meet, so each is a stage of its own."""
    found = holders_of(catalog(3), 3)
    assert found is not None
    units: dict[Unit, Sequence[int]] = {FIRST: [0, 1, 2], SECOND: [3, 4, 5], THIRD: [6, 7, 8]}
    assert HolderAssignment(found, units, 1).stages == ((0,), (1,), (2,))


@pytest.mark.parametrize("num_files", [1, 2])
def test_ranks_that_share_a_file_share_its_reading(num_files: int) -> None:
    """With more ranks than files, none of them stands by while another reads, also with one leader."""
    slices = DENSE.slices(num_files)
    file_of = {slice_.item: n % num_files for each in slices.values() for n, slice_ in enumerate(each)}
    records = tuple(StoredItem(file_of[number], 0, 8) for number in range(len(file_of)))
    files = Catalog(catalog(0).description, tuple("ab"[:num_files]), records, ())
    plan = make_plan(
        settle(DENSE),
        slices,
        RankGrid(1, 1, 1, 4),
        max_shard_bytes=LARGE,
        leaders_per_stage=1,
        holders=holders_of(files, 4),
    )
    assert all(plan.read_bytes(rank) for rank in range(4))
