"""Claims of `pp_export.distributed.liveness`: what ranks do is seen, and no wait for a rank that does nothing
goes on.
"""

from __future__ import annotations

import time
from typing import Any

from torch.distributed import Store  # type: ignore[attr-defined]

from pp_export.core.errors import ExportError
from pp_export.distributed.shared_keys import SharedKeys
from pp_export.distributed.world import World
from tests.fixtures.worlds import NUM_RANKS, error_of, on_all


def test_progress_is_seen(store: Store) -> None:
    """What a rank posts, rank 0 reads, with a beat that moves although no counter does."""

    def act(world: World) -> dict[int, dict[str, Any]]:
        world.liveness.counters = lambda: {"read": 10 + world.rank}
        world.liveness.post_progress()
        world.liveness.counters = lambda: {"read": 0}
        world.liveness.post_progress()  # too soon to be posted
        world.liveness.counters = lambda: {"read": 10 + world.rank}
        world.control.together(lambda: None)
        first = world.liveness.progress_of([1, 2])
        world.control.together(lambda: time.sleep(0.4 if world.rank == 1 else 0))
        second = world.liveness.progress_of([2])
        world.control.together(lambda: None)
        return {**first, 3: second[2]} if world.rank == 0 else {}

    seen = on_all(act, store)[0]
    assert {rank: each["read"] for rank, each in seen.items()} == {1: 11, 2: 12, 3: 12}
    assert seen[3]["beat"] > seen[2]["beat"] >= 1


def test_a_rank_that_never_comes_is_no_progress(store: Store) -> None:
    """Ranks that wait for one that does nothing stop after the stall time, and it is named."""

    def act(world: World) -> ExportError | None:
        if world.rank == 2:
            time.sleep(1)
            return None
        return error_of(world, lambda w: w.control.together(lambda: None))

    found = on_all(act, store, stall_seconds=0.3)
    for error in found[:2]:
        assert error is not None
        assert "no progress" in error.what
        assert error.where["rank"] in ("0", "2")


def test_ranks_that_all_wait_for_what_hangs_are_stopped(store: Store) -> None:
    """Where all ranks post and no counter moves, rank 0 stops all, and says what each one's workers were
    at.
    """

    def act(world: World) -> ExportError:
        world.liveness.counters = lambda: {"read": 5, "doing": {"reader": f"reading {world.rank}"}}
        return error_of(world, lambda w: w.control.wait(lambda: False))

    errors = on_all(act, store, stall_seconds=0.8)
    assert all(error.to_json() == errors[0].to_json() for error in errors)
    assert (errors[0].what, errors[0].where["rank"]) == ("no progress for 1 s", "0, 1, 2")
    assert set(errors[0].findings) >= {f"rank {rank} was reading {rank}" for rank in range(NUM_RANKS)}


def test_a_counter_that_moves_is_progress(store: Store) -> None:
    """A wait that is longer than the stall time goes on, as long as one counter of one rank moves."""

    def act(world: World) -> str:
        if world.rank == 2:
            world.liveness.counters = lambda: {"read": time.monotonic()}
        end = time.monotonic() + 1.5
        world.control.wait(lambda: time.monotonic() > end)
        return "ok"

    assert on_all(act, store, stall_seconds=0.5) == ["ok"] * NUM_RANKS


def test_no_beat_comes_after_the_end(store: Store) -> None:
    """A beat that is being posted while the world closes leaves no key behind."""
    slow: list[str] = []

    class SlowKeys(SharedKeys):
        def set(self, key: str, value: bytes) -> None:
            if key == "heartbeat":
                slow.append(key)
                time.sleep(0.2)
            super().set(key, value)

    world = World(0, 2, SlowKeys(store), stall_seconds=20)
    World(1, 2, SharedKeys(store), stall_seconds=20).close()
    time.sleep(0.1)
    world.close()
    time.sleep(0.4)
    assert slow
    assert [key for key in ("run", "heartbeat") if store.check([key])] == []
