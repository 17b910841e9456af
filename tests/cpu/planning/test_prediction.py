"""Predictions: against arithmetic by hand, and against the plan that they are of."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pp_export.core.timeline import Timeline
from pp_export.planning.machine import GB, Costs, Machine
from pp_export.planning.prediction import ORDER, predict
from pp_export.planning.work import FileWork, ShardWork, Work, work_of
from tests.cpu.planning.test_assign_holders import Job, held
from tests.cpu.planning.test_planner import DENSE, MOE, planned

COSTS = Costs(
    reads=0.2,
    pastes=0.1,
    encodes=0.4,
    hashes=0.5,
    writes=0.1,
    verifies=0.2,
    sends=0.25,
    box_seconds=0.001,
    start_seconds=2,
    launch_seconds=0.25,
    rank_cpu_seconds=3,
    publish_seconds=1,
)
MACHINE = Machine(nodes=1, cores=1, read_gbps=4, write_gbps=1, node_gbps=100, costs=COSTS)


def one_file(*, leader: int = 0, reader: int = 0, verifier: int | None = 0, world_size: int = 1) -> Work:
    """A file of 2 GB, read by one rank."""
    size = 2 * int(GB)
    shard = ShardWork("a", leader, size, int(GB), ((reader, size),))
    return Work(world_size, 1000, (FileWork("a", (shard,), verifier),))


def test_one_file_takes_its_steps_one_after_another() -> None:
    """Read (the disk is slower than the cores), encode a half, hash and write side by side, re-read."""
    found = predict(one_file(), replace(MACHINE, cores=2))
    assert found.phases == {
        "start": 2,
        "plan": pytest.approx(1),
        "bytes": pytest.approx(0.5 + 0.4 + 2.0 + 0.5),
        "publish": 1,
    }
    assert found.wall_seconds == pytest.approx(7.4)
    assert list(found.ended) == pytest.approx([6.4])
    assert found.bounds == {
        "start": pytest.approx(3),
        "storage": pytest.approx(1 + 2),
        "cores": pytest.approx((2 * (0.2 + 0.5 + 0.1 + 0.2) + 0.4) / 2),
        "network": pytest.approx(0.06),
    }


def test_ranks_start_on_the_cores_of_their_node() -> None:
    """One rank needs no launcher; of several on a node each takes its CPU seconds."""
    alone, two, apart = (
        predict(one_file(world_size=size), replace(MACHINE, cores=2, nodes=nodes)).phases["start"]
        for size, nodes in ((1, 1), (4, 1), (4, 4))
    )
    assert (alone, two, apart) == (2, 6.25, 2.25)


def test_one_core_does_what_two_do_side_by_side() -> None:
    """Hash and write share a core: the work of both is the bound."""
    slow = replace(MACHINE, write_gbps=100)
    assert predict(one_file(), slow).phases["bytes"] == pytest.approx(0.5 + 0.4 + 1.2 + 0.5)


def test_reading_and_writing_share_the_storage() -> None:
    """Two ranks with two files each: while the second ones are read, the first ones are written; the storage
    moves one byte at a time, so all of them take as long as if they came one after another.
    """
    size = int(GB)
    shards = [ShardWork(f"{number}", number % 2, size, 0, ((number % 2, size),)) for number in range(4)]
    work = Work(2, 1000, tuple(FileWork(shard.file, (shard,), None) for shard in shards))
    found = predict(work, replace(MACHINE, cores=16))
    assert found.phases["bytes"] == pytest.approx(4 / 4 + 4 / 1)
    assert found.bound_by == "storage"


def test_what_another_rank_reads_is_sent() -> None:
    """It costs both ranks; between nodes the network carries it, inside of one it doesn't."""
    work = one_file(reader=1, verifier=None, world_size=2)
    beside = predict(work, replace(MACHINE, cores=4, node_gbps=1))
    # The network bounds the storage; sending and pasting of pieces go beside the reading.
    assert beside.phases["bytes"] == pytest.approx(2.0 + 0.4 + 2.0, abs=0.1)
    apart = predict(work, replace(MACHINE, nodes=2, cores=2, node_gbps=1))
    assert apart.phases["bytes"] == pytest.approx(4.0 + 0.4 + 2.0, abs=0.1)
    assert apart.bounds["network"] == pytest.approx(4.0)
    assert beside.verified_bytes == (0, 0)


def test_ranks_that_do_nothing_end_at_once() -> None:
    """An idle rank has no end, and no spans but those of the main thread."""
    found = predict(one_file(world_size=3, verifier=1), MACHINE)
    assert found.ended[2] == 0
    assert found.ended[1] > found.ended[0] > 0
    assert [len(rank.lanes) for rank in found.timeline.ranks] == [5, 2, 1]


@pytest.mark.parametrize("cores", [1, 8])
def test_the_work_is_the_plan_s(cores: int) -> None:
    """Bytes of the work are those that the plan says each rank reads, writes, sends and verifies, and those
    of the spans are the work's.
    """
    plan = held(Job(tensor=2, pipeline=3, idle=2), MOE, max_shard_bytes=1500)
    work = work_of(plan, 10, verify=True)
    shards = [shard for file in work.files for shard in file.shards]
    read, written, sent = Counter[int](), Counter[int](), Counter[int]()
    for shard in shards:
        written[shard.leader] += shard.num_bytes
        for rank, size in shard.read_by:
            read[rank] += size
            sent[rank] += size * (rank != shard.leader)
    for rank in range(plan.world_size):
        assert read[rank] == plan.part_of(rank).read_bytes
        assert written[rank] == plan.part_of(rank).written_bytes
        assert sent[rank] == plan.part_of(rank).sent_bytes
    assert sum(sent.values()) > 0
    found = predict(work, replace(MACHINE, cores=cores))
    assert sum(found.verified_bytes) == sum(written.values())
    told: Counter[tuple[str, int]] = Counter()
    for each in found.timeline.ranks:
        for span in (span for lane in each.lanes for span in lane.spans):
            told[span.word, each.rank] += span.num_bytes
    for rank in range(plan.world_size):
        assert told["reads", rank] == read[rank]
        assert told["sends", rank] == sent[rank]
        assert told["writes", rank] == told["hashes", rank] == written[rank]
        assert told["verifies", rank] == found.verified_bytes[rank]


def test_files_of_several_ranks_are_read_back_in_any_case() -> None:
    """Without verification only files that several ranks write are re-read, for their SHA-256."""
    whole = work_of(planned(DENSE, 3), 10, verify=False)
    assert {file.verifier for file in whole.files} == {None}
    ranges = replace(whole.files[0], shards=whole.files[0].shards * 2)
    assert ranges.num_bytes == 2 * whole.files[0].num_bytes


@st.composite
def works(draw: st.DrawFn) -> Work:
    """Files of some ranks, of which others may read parts."""
    world_size = draw(st.integers(1, 6))
    ranks, sizes = st.integers(0, world_size - 1), st.integers(1, 3 * 10**8)
    files = []
    for number in range(draw(st.integers(1, 8))):
        read_by = draw(st.dictionaries(ranks, sizes, min_size=1))
        size = sum(read_by.values())
        shard = ShardWork(f"{number}", draw(ranks), size, size // 2, tuple(sorted(read_by.items())))
        files.append(FileWork(f"{number}", (shard,), draw(st.none() | ranks)))
    return Work(world_size, 100, tuple(files))


def machine_for(work: Work, nodes: int) -> Machine:
    return replace(MACHINE, nodes=min(nodes, work.world_size), cores=3)


@settings(deadline=None, max_examples=50)
@given(works(), st.integers(1, 3))
def test_nothing_is_faster_than_its_bounds(work: Work, nodes: int) -> None:
    """The bytes take at least as long as each resource is busy, and the wall time is that of all phases."""
    found = predict(work, machine_for(work, nodes))
    for name, seconds in found.bounds.items():
        assert name == "start" or found.phases["bytes"] >= seconds * (1 - 1e-9), name
    assert found.bound_by in {*found.bounds, ORDER}
    assert max(found.ended) == pytest.approx(found.wall_seconds - found.phases["publish"])


@settings(deadline=None, max_examples=50)
@given(works(), st.integers(1, 3))
def test_a_leader_has_so_many_shards_in_hand(work: Work, nodes: int) -> None:
    """From the first byte read to the last written, no leader has more shards than one for each of its
    threads and one that is being filled; the timeline is the same after a walk through JSON.
    """
    found = predict(work, machine_for(work, nodes))
    num_in_hand = machine_for(work, nodes).threads(work.world_size) + 1
    leader_of = {file.file: file.shards[0].leader for file in work.files}
    hold: dict[str, list[float]] = {file: [float("inf"), 0.0] for file in leader_of}
    for span in (span for rank in found.timeline.ranks for lane in rank.lanes for span in lane.spans):
        if span.word in ("reads", "writes", "hashes"):
            both = hold[span.file]
            both[:] = [min(both[0], span.begin), max(both[1], span.end)]
    for begin, _ in hold.values():
        at_once = Counter(
            leader_of[file] for file, (b, e) in hold.items() if b <= begin + 1e-6 and e > begin + 2e-6
        )
        assert max(at_once.values(), default=0) <= num_in_hand
    again = Timeline.from_json(found.timeline.to_json()).to_json()
    assert Timeline.from_json(again).to_json() == again


def test_many_ranks_are_told_by_some() -> None:
    """Of thousands of ranks some dozens are drawn, the busiest among them, and all have their end."""
    files = tuple(
        FileWork(str(rank), (ShardWork(str(rank), rank, size, size, ((rank, size),)),), (rank + 1) % 2000)
        for rank, size in enumerate([10**6] * 1234 + [10**9] + [10**6] * 765)
    )
    found = predict(Work(2000, 10, files), replace(MACHINE, nodes=250, cores=8))
    shown = [rank.rank for rank in found.timeline.ranks]
    assert {0, 1234, 1999} <= set(shown)
    assert len(shown) < 60
    assert min(found.ended) > 0
    assert max(found.ended[:1234]) < found.ended[1234]
