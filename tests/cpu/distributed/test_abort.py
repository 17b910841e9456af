"""Claims of `pp_export.distributed.abort`: after a failure one rank speaks for all, and all hear it."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]

from pp_export.core.errors import ExportError, PeerError, TargetError
from pp_export.distributed.abort import Failure
from pp_export.distributed.shared_keys import SharedKeys
from pp_export.distributed.world import World
from pp_export.steps.failure import abort
from tests.fixtures.worlds import world_of


def test_one_rank_reports_where_rank_0_is_silent(store: Store) -> None:
    """Without a sign of life of rank 0, exactly one other is elected, and its word is everybody's."""
    SharedKeys(PrefixStore("w", store)).set("run", b"1")

    def act(rank: int) -> tuple[bool, ExportError | None]:
        world = world_of(rank, store)
        world.abort.fail(TargetError(f"of {rank}"))
        is_reporter = world.abort.elect_reporter(0.2)
        if is_reporter:
            world.abort.conclude(TargetError("the cause"), rank)
        return is_reporter, world.abort.conclusion(5)

    with ThreadPoolExecutor(2) as ranks:
        found = list(ranks.map(act, (1, 2)))
    assert sorted(is_reporter for is_reporter, _ in found) == [False, True]
    assert [error.what for _, error in found if error] == ["the cause", "the cause"]


def test_a_busy_rank_0_stays_the_reporter(store: Store) -> None:
    """Where rank 0 is alive but has not failed yet, no other rank speaks in its place."""
    first, second = (world_of(rank, store) for rank in (0, 1))
    assert second.abort.elect_reporter(5) is False
    assert first.abort.elect_reporter(0) is True
    first.close(0)
    second.close(0)


def test_ranks_that_say_nothing_are_listed(store: Store) -> None:
    """After the grace the reporter knows who failed, for what, and who stayed silent."""
    worlds = [world_of(rank, store) for rank in (0, 1)]
    worlds[1].abort.fail(PeerError("lost"))
    worlds[0].abort.fail(TargetError("full"))
    failures, silent = worlds[0].abort.failures(0.1)
    assert [(f.rank, f.error["what"], f.is_origin) for f in failures] == [
        (0, "full", True),
        (1, "lost", False),
    ]
    assert silent == [2]
    for world in worlds:
        world.close(0)


def test_a_verdict_that_never_comes_is_not_waited_for(store: Store) -> None:
    """`conclusion` gives up after its time, and the rank's own error stands."""
    SharedKeys(PrefixStore("w", store)).set("run", b"1")
    begun = time.monotonic()
    assert world_of(1, store).abort.conclusion(0.1) is None
    assert time.monotonic() - begun < 2


def test_only_own_failures_are_origins() -> None:
    """A rank that stopped because of another one, or of a signal, is not where it began."""
    kinds = {"PeerError": False, "StoppedError": False, "TargetError": True, "ExportError": True}
    assert {kind: Failure(1, {"kind": kind}).is_origin for kind in kinds} == kinds


def after_a_failure(store: Store) -> tuple[World, threading.Thread]:
    """Rank 1 that is still busy when rank 0 has failed, reported and closed."""
    first, late = (World(n, 2, SharedKeys(store), stall_seconds=5) for n in (0, 1))
    assert first.liveness.last_beat() is not None
    assert abort(first, None, TargetError("full")).what == "full"
    closing = threading.Thread(target=first.close, args=(3,))
    closing.start()
    time.sleep(0.1)
    return late, closing


def test_a_late_rank_still_hears_the_failure(store: Store) -> None:
    """A rank that listens only when the others have closed hears who failed, as long as they wait for it."""
    late, closing = after_a_failure(store)
    try:
        with pytest.raises(PeerError, match="rank 0 failed: full"):
            late.control.check()
    finally:
        late.close(0)
        closing.join(5)


def test_a_late_rank_does_not_wait_for_a_sign_of_life(store: Store) -> None:
    """Where rank 0 has reported, nobody waits the grace out to find out whether it lives."""
    late, closing = after_a_failure(store)
    try:
        late.abort.fail(PeerError("heard"))
        begun = time.monotonic()
        assert late.abort.elect_reporter(1) is False
        waited = time.monotonic() - begun
        verdict = late.abort.conclusion(1)
        assert verdict is not None
        assert verdict.what == "full"
        assert waited < 0.5
    finally:
        late.close(0)
        closing.join(5)


def leaving(world: World) -> tuple[threading.Thread, list[float]]:
    """A thread that leaves after a failure, and a list that gets an entry when it has left."""
    left: list[float] = []

    def leave() -> None:
        world.abort.leave_after_failure(20)
        left.append(time.monotonic())

    thread = threading.Thread(target=leave)
    thread.start()
    return thread, left


def test_the_reporter_leaves_when_all_who_spoke_have_heard_it(store: Store) -> None:
    """The reporter's process may serve the store: while a rank that failed too still has to read what it
    concluded, it stays. Else that rank would find the store gone, and report by itself.
    """
    reporter, other = (world_of(rank, store) for rank in (0, 1))
    other.abort.fail(PeerError("lost"))
    reporter.abort.fail(TargetError("full"))
    assert reporter.abort.elect_reporter(5)
    reporter.abort.failures(0.1)
    reporter.abort.conclude(TargetError("full"), 0)
    thread, left = leaving(reporter)
    time.sleep(0.2)
    assert left == []
    assert getattr(other.abort.conclusion(5), "what", None) == "full"
    other.abort.leave_after_failure(5)
    thread.join(5)
    assert len(left) == 1
    for world in (reporter, other):
        world.close(0)


def test_leaving_waits_for_the_report(store: Store) -> None:
    """After a failure the other ranks leave when the reporter has reported, not before."""
    reporter, other = (world_of(rank, store) for rank in (0, 1))
    thread, left = leaving(other)
    time.sleep(0.2)
    assert left == []
    reporter.abort.leave_after_failure(10)
    thread.join(5)
    assert len(left) == 1
    for world in (reporter, other):
        world.close(0)
