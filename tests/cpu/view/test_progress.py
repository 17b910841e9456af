"""Claims of `pp_export.view.progress`: progress is a line now and then, or bars on a terminal."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from pp_export.distributed.alone import OwnKeys
from pp_export.distributed.liveness import Liveness
from pp_export.distributed.tree import Seat
from pp_export.distributed.world import World
from pp_export.view import progress
from pp_export.view.progress import ExportView, compared_bytes
from pp_export.view.text import human_bytes
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


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """What is logged."""
    found: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    logger, handler = logging.getLogger("pp_export"), Keep()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield found
    logger.removeHandler(handler)
    logger.setLevel(level)


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_progress_is_a_line_per_stage_now_and_then(planned: Planned, lines: list[str], clock: Clock) -> None:
    """Without a terminal, each stage has a line every few seconds with its bytes, rate and shards."""
    world = OneOfFour(0)
    with ExportView(world, verifies=True) as view:
        view.poll()
        view.plan(planned.inputs, planned.plan)
        assert len(lines) == 1
        assert "exporting Qwen2ForCausalLM: 75 tensors" in lines[0]
        assert "by 4 ranks in 2 stages" in lines[0]
        view.poll()
        clock.now += 1
        view.poll()
        assert len(lines) == 1
        world.posted = {0: {"written": 100_000, "shards": 1}, 2: {"written": 50_000, "shards": 0}}
        clock.now += 9
        view.poll()
        first, second = lines[1:]
        totals = [sum(s.num_bytes for s in planned.plan.shards if s.stage == stage) for stage in (0, 1)]
        counts = [sum(s.stage == stage for s in planned.plan.shards) for stage in (0, 1)]
        total, other = map(human_bytes, totals)
        assert first == f"export stage 0: 100 KB of {total}, 10 KB/s, 1 of {counts[0]} shards"
        assert second == f"export stage 1: 50 KB of {other}, 5 KB/s, 0 of {counts[1]} shards"
        view.poll()
        assert len(lines) == 3


def test_progress_of_verifying_counts_what_a_stage_verifies(
    planned: Planned, lines: list[str], clock: Clock
) -> None:
    """A stage's line while verifying has the bytes of the shards that its ranks re-read, not of those they
    wrote.
    """
    world = OneOfFour(0)
    view = ExportView(world, verifies=True)
    view.plan(planned.inputs, planned.plan)
    view.poll()
    clock.now += 10
    pairs = list(zip(planned.plan.shards, planned.plan.verifiers()))
    mine = {rank: sum(shard.num_bytes for shard, reader in pairs if reader == rank) for rank in range(4)}
    world.posted = {rank: {"verified": count} for rank, count in mine.items()}
    view.poll()
    verifying = [line for line in lines if line.startswith("verify")]
    assert len(verifying) == 2
    for line in verifying:
        done, _, total = line.partition(": ")[2].partition(",")[0].partition(" of ")
        assert done == total


def test_progress_of_ranges_adds_up(planned: Planned, lines: list[str], clock: Clock) -> None:
    """Files that several ranks write count as files before, as ranges and bytes of each while exporting; when
    only they are read back, other files don't count.
    """
    plan = planned.in_ranges()
    for count in (len(plan.files), 2):
        shards = [shard for ranges in plan.files[:count] for shard in ranges]
        whole = [ranges[0] for ranges in planned.plan.files[count:]]
        mixed = replace(plan, shards=(*shards, *whole))
        world = OneOfFour(0)
        view = ExportView(world, verifies=False)
        view.plan(planned.inputs, mixed)
        assert f"75 tensors, {human_bytes(plan.total_size)}, in {len(plan.files)} files" in lines[0]
        view.poll()
        clock.now += 10
        joined = [file for file in mixed.files if len(file) > 1]
        written = sum(shard.num_bytes for shard in mixed.shards)
        read = sum(shard.num_bytes for file in joined for shard in file)
        world.posted = {0: {"written": written, "verified": read, "shards": len(mixed.shards)}}
        view.poll()
        for phase, total, note in (
            ("export", written, f"{len(mixed.shards)} of {len(mixed.shards)} ranges of shards"),
            ("verify", read, f"{len(joined)} shards"),
        ):
            (line,) = (line for line in lines if line.startswith(f"{phase} stage 0"))
            assert line.startswith(f"{phase} stage 0: {human_bytes(total)} of {human_bytes(total)}, ")
            assert line.endswith(note)
        lines.clear()


def test_other_ranks_show_nothing(planned: Planned, lines: list[str], clock: Clock) -> None:
    """Only rank 0 speaks of progress."""
    view = ExportView(OneOfFour(1), verifies=True)
    view.plan(planned.inputs, planned.plan)
    for _ in range(3):
        clock.now += 60
        view.poll()
    assert lines == []


def test_a_terminal_gets_bars(
    planned: Planned, lines: list[str], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a terminal each stage has a bar that is completed by the bytes written."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    world = OneOfFour(0)
    with ExportView(world, verifies=True) as view:
        view.plan(planned.inputs, planned.plan)
        world.posted = {0: {"written": 100, "shards": 1}}
        clock.now += 1
        view.poll()
        assert view._bars is not None
        assert [(task.description, task.completed) for task in view._bars.tasks] == [
            ("export stage 0", 100),
            ("export stage 1", 0),
        ]
    with progress.bytes_bar("verifying") as on_bytes:
        on_bytes(10)


def test_a_comparison_is_a_line_now_and_then(lines: list[str], clock: Clock) -> None:
    """Without a terminal, with rate and total, once bytes are compared."""
    with compared_bytes() as shown:
        clock.now += 60
        shown.total(4_000_000)
        shown.add(1_000_000)
        assert lines == []
        clock.now += 10
        shown.add(1_000_000)
        shown.add(2_000_000)
    assert lines == ["compared 2 MB of 4 MB, 200 KB/s"]


def test_a_comparison_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is shown that metadata are read before anything is compared, and then how much of all."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with compared_bytes() as shown:
        pass
    assert "reading metadata" in capsys.readouterr().err
    with compared_bytes() as shown:
        shown.total(4_000_000)
        shown.add(4_000_000)
    assert "4.0/4.0 MB" in capsys.readouterr().err


def test_bytes_without_a_terminal_are_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """The bar of `verify` prints nothing where there is no terminal."""
    with progress.bytes_bar("verifying") as on_bytes:
        on_bytes(10)
    assert capsys.readouterr() == ("", "")
