"""Claims of `pp_export.distributed.world`: ranks find each other, and nothing is left in the store."""

from __future__ import annotations

import json
import threading
import time

import pytest
from torch.distributed import Store  # type: ignore[attr-defined]

from pp_export.core.errors import ExportError, PeerError, TargetError
from pp_export.distributed.alone import alone
from pp_export.distributed.shared_keys import SharedKeys
from pp_export.distributed.world import World
from pp_export.steps.failure import abort
from tests.fixtures.worlds import NUM_RANKS, RANKS, error_of, on_all, world_of


def test_the_run_has_one_id(store: Store) -> None:
    """All ranks of a world know one run id, another world has another one."""
    first, second = (on_all(lambda world: world.run_id, store, name=name) for name in "ab")
    assert len(set(first)) == len(set(second)) == 1
    assert first != second


def test_a_rank_0_that_never_comes_is_a_peer_error(store: Store) -> None:
    """A rank that finds no rank 0 within the stall time says so, and does not hang."""
    with pytest.raises(PeerError, match="rank 0 has not come within 0 s") as caught:
        World(1, 2, SharedKeys(store), stall_seconds=0.1)
    assert caught.value.where == {"rank": "1"}


def test_a_world_of_one_needs_nobody() -> None:
    """All steps return at once, a failure is one's own, and there is no heartbeat."""
    num_threads = threading.active_count()
    world = alone(stall_seconds=1)
    assert threading.active_count() == num_threads
    assert world.control.share(lambda: b"x") == b"x"
    assert world.control.on_first(lambda: "x") == "x"
    assert world.control.together(lambda: 5) == 5
    assert world.control.gather(b"x") == [b"x"]
    world.control.same({"x": "y"})
    error = TargetError("full")
    assert abort(world, None, error) is error
    assert json.dumps(error.to_json())
    world.close()


def steps_of(world: World) -> None:
    """Every kind of step, as an export makes them."""
    world.control.gather(b"x")
    world.control.share(lambda: b"x")
    world.control.on_first(lambda: 5)
    world.control.same({"the plan": "x"})
    world.liveness.post_progress()


@pytest.mark.parametrize("guilty", [None, *RANKS])
def test_close_leaves_no_key(store: Store, guilty: int | None) -> None:
    """After success, and after a failure of any rank, the store has the keys that it had before; another
    world goes over it.
    """
    store.set("the job's own", "kept")

    def act(world: World) -> str:
        def fail_at_last(world: World) -> None:
            steps_of(world)
            world.control.together(lambda: 1 / 0 if world.rank == guilty else 0)

        try:
            fail_at_last(world)
        except (ExportError, ZeroDivisionError) as error:
            own = error if isinstance(error, ExportError) else TargetError("divided")
            return abort(world, None, own).what
        return "ok"

    assert set(on_all(act, store)) == {"ok" if guilty is None else "divided"}
    assert store.num_keys() == 1
    again = on_all(lambda world: world.control.share(lambda: b"again"), store, name="x")
    assert again == [b"again"] * NUM_RANKS
    assert store.num_keys() == 1
    assert store.get("the job's own") == b"kept"


def test_close_leaves_no_key_of_an_abort(store: Store) -> None:
    """Keys of ranks that also waited for the report before they closed go as well."""

    def act(world: World) -> None:
        error_of(world, lambda w: w.control.same({"it": str(w.rank)}))
        world.abort.leave_after_failure()

    on_all(act, store)
    assert store.num_keys() == 0


def test_close_leaves_no_key_of_steps_that_rank_0_never_took(store: Store) -> None:
    """Rank 0 fails before the first step, when the others already wait in it."""
    arrived = threading.Barrier(NUM_RANKS)

    def act(world: World) -> None:
        def first(world: World) -> None:
            if world.rank == 0:
                arrived.wait(10)
                time.sleep(0.1)
                raise TargetError("full")
            arrived.wait(10)
            world.control.gather(b"x")
            world.control.share(lambda: b"x")

        error_of(world, first)

    on_all(act, store)
    assert store.num_keys() == 0


def test_close_does_not_wait_for_ranks_that_are_gone(store: Store) -> None:
    """Rank 0 leaves after its patience, although no other rank does."""
    world = world_of(0, store)
    begun = time.monotonic()
    world.close(0.1)
    assert time.monotonic() - begun < 2
