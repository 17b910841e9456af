"""Claims of `pp_export.steps.telling`: rank 0 tells how far all ranks are, in all and by stage."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pp_export.core.errors import ExportError
from pp_export.distributed.alone import OwnKeys
from pp_export.distributed.liveness import Liveness
from pp_export.distributed.tree import Seat
from pp_export.distributed.world import World
from pp_export.steps import telling
from pp_export.steps.telling import ExportProgress, PartProgress, Step, Telling
from tests.fixtures.planned import Planned


class Posted(Liveness):
    """Progress is what the test says it is."""

    def __init__(self, world: OneOfFour) -> None:
        super().__init__(Seat(0, 1, 1), OwnKeys(), OwnKeys(), stall_seconds=60)
        self._world = world

    def progress_of(self, ranks: Any) -> dict[int, dict[str, Any]]:
        return {rank: self._world.posted[rank] for rank in ranks if rank in self._world.posted}


class OneOfFour(World):
    """A rank of four that has no process group."""

    def __init__(self, rank: int) -> None:
        super().__init__(0, 1, OwnKeys(), None, stall_seconds=60)
        self.rank, self.size = rank, 4
        self.posted: dict[int, dict[str, Any]] = {}
        self.liveness = Posted(self)


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(telling, "time", clock)
    return clock


def begun(world: World, planned: Planned, told: list[ExportProgress], *, verifies: bool = True) -> Telling:
    """An export whose bytes begin to move."""
    made = Telling(world, told.append, verifies)
    made.step(Step.PLANNING)
    made.plan(planned.inputs, planned.plan)
    made.step(Step.MOVING)
    return made


def test_each_stage_is_counted_with_what_its_ranks_posted(planned: Planned, clock: Clock) -> None:
    """What is exported, then bytes, files, rate and the time that is left, of each stage and in all."""
    world, told = OneOfFour(0), list[ExportProgress]()
    made = begun(world, planned, told)
    assert [now.step for now in told] == [Step.PLANNING, Step.MOVING]
    assert told[0].parts == ()
    assert (
        told[1].about
        == f"Qwen2ForCausalLM: 75 tensors in {len(planned.plan.files)} files by 4 ranks in 2 stages"
    )
    made.poll()
    assert len(told) == 2  # too soon
    world.posted = {0: {"written": 100_000, "shards": 1}, 2: {"written": 50_000, "shards": 0, "verified": 7}}
    clock.now += 10
    made.poll()
    totals = [sum(s.num_bytes for s in planned.plan.shards if s.stage == stage) for stage in (0, 1)]
    counts = [sum(s.stage == stage for s in planned.plan.shards) for stage in (0, 1)]
    first, second = told[-1].parts
    assert (first.name, first.written, first.to_write) == ("stage 0", 100_000, totals[0])
    assert (first.files, first.num_files) == (1, counts[0])
    assert (second.written, second.to_write, second.verified) == (50_000, totals[1], 7)
    assert told[-1].total.written == 150_000
    assert told[-1].bytes_per_second == 15_000
    whole = told[-1].total.to_write + told[-1].total.to_verify
    assert told[-1].seconds_left == pytest.approx(10 * (whole - 150_007) / 150_007)
    assert ExportProgress.from_json(told[-1].to_json()) == told[-1]


def test_what_a_stage_re_reads_is_not_what_it_wrote(planned: Planned, clock: Clock) -> None:
    """A stage's bytes to verify are those of the shards that its ranks re-read."""
    pairs = list(zip(planned.plan.shards, planned.plan.verifiers()))
    mine = {rank: sum(shard.num_bytes for shard, reader in pairs if reader == rank) for rank in range(4)}
    world, told = OneOfFour(0), list[ExportProgress]()
    made = begun(world, planned, told)
    world.posted = {rank: {"verified": count} for rank, count in mine.items()}
    clock.now += 10
    made.poll()
    assert [part.verified == part.to_verify > 0 for part in told[-1].parts] == [True, True]


def test_ranges_add_up(planned: Planned, clock: Clock) -> None:
    """Files that several ranks write count as ranges; they alone are read back where nothing is verified."""
    plan = planned.in_ranges()
    for count in (len(plan.files), 2):
        shards = [shard for ranges in plan.files[:count] for shard in ranges]
        whole = [ranges[0] for ranges in planned.plan.files[count:]]
        mixed = replace(plan, shards=(*shards, *whole))
        world, told = OneOfFour(0), list[ExportProgress]()
        made = Telling(world, told.append, verifies=False)
        made.plan(planned.inputs, mixed)
        made.step(Step.MOVING)
        joined = [file for file in mixed.files if len(file) > 1]
        total = told[-1].total
        assert told[-1].files_are == "ranges of shards"
        assert total.num_files == len(mixed.shards)
        assert total.to_write == sum(shard.num_bytes for shard in mixed.shards)
        assert total.to_verify == sum(shard.num_bytes for file in joined for shard in file)


def test_at_the_end_everything_is_done(planned: Planned, clock: Clock) -> None:
    """Once published, all bytes are written and verified, whatever was posted last; the time stands still
    when the bytes have moved, so that the rate is that of the report.
    """
    world, told = OneOfFour(0), list[ExportProgress]()
    made = begun(world, planned, told)
    clock.now += 4
    made.step(Step.CONFIRMING)
    clock.now += 100
    made.step(Step.DONE)
    total = told[-1].total
    assert (total.written, total.verified, total.files) == (total.to_write, total.to_verify, total.num_files)
    assert (told[-1].seconds, told[-1].seconds_left) == (4, 0)


def test_other_ranks_tell_nothing(planned: Planned, clock: Clock) -> None:
    """Only rank 0 knows of all."""
    told = list[ExportProgress]()
    made = begun(OneOfFour(1), planned, told)
    clock.now += 60
    made.poll()
    assert told == []


def test_a_callback_that_fails_ends_the_export_until_it_is_published(planned: Planned) -> None:
    """Before, what it raises is the export's error; afterwards the export stands."""

    def fail(now: ExportProgress) -> None:
        raise RuntimeError("no")

    made = Telling(OneOfFour(0), fail, verifies=True)
    with pytest.raises(ExportError, match="callback on_progress failed"):
        made.step(Step.PLANNING)
    made.step(Step.DONE)


def test_nothing_is_known_before_anything_has_moved() -> None:
    """No rate and no time left without bytes or time."""
    part = PartProgress("all", 0, 3, 0, 300, 0, 300)
    for now in (ExportProgress(), ExportProgress(parts=(part,), seconds=3.0)):
        assert now.bytes_per_second == 0
        assert now.seconds_left is None
