"""Claims of `pp_export.distributed.world`: what ranks tell each other arrives, a failure of one is heard
by all and is one error, and nothing is left in the store.

Threads are the ranks here, over one store as a launcher's.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any, TypeVar

import pytest
from torch.distributed import HashStore, PrefixStore, Store  # type: ignore[attr-defined]

from pp_export import export
from pp_export.core.errors import ExportError, PeerError, TargetError
from pp_export.distributed import liveness, process_groups
from pp_export.distributed.process_groups import SharedKeys
from pp_export.distributed.world import Failure, World
from pp_export.export import abort

T = TypeVar("T")
NUM_RANKS = 3
RANKS = range(NUM_RANKS)


@pytest.fixture
def store() -> Store:
    """A store in which a key that nobody sets is not waited for long."""
    store = HashStore()
    store.set_timeout(timedelta(seconds=2))
    return store


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 gives a sign of life more often than every second, and nobody is waited for long."""
    monkeypatch.setattr(liveness, "_BEAT_SECONDS", 0.02)
    monkeypatch.setattr(export, "_GRACE_SECONDS", 0.6)


def world_of(rank: int, store: Store, *, name: str = "w", stall_seconds: float = 5) -> World:
    return World(rank, NUM_RANKS, SharedKeys(PrefixStore(name, store)), stall_seconds=stall_seconds)


def on_all(act: Callable[[World], T], store: Store, **how: Any) -> list[T]:
    """What `act` returns on each rank; the world is closed afterwards, as an export does."""

    def of_rank(rank: int) -> T:
        world = world_of(rank, store, **how)
        try:
            return act(world)
        finally:
            world.close()

    with ThreadPoolExecutor(NUM_RANKS) as ranks:
        return list(ranks.map(of_rank, RANKS))


def error_of(world: World, act: Callable[[World], object]) -> ExportError:
    """The error that this rank raises at last, as `export` does it."""
    try:
        act(world)
    except ExportError as error:
        return abort(world, None, error)
    raise AssertionError(f"rank {world.rank} heard nothing")


# --- control


def test_share_gives_everybody_what_rank_0_made(store: Store) -> None:
    """`produce` runs on rank 0 alone and its bytes, any bytes, are on all ranks."""
    ran: list[int] = []

    def act(world: World) -> list[bytes]:
        def produce() -> bytes:
            ran.append(world.rank)
            return b"\0\xff" * len(ran)

        return [world.share(produce), world.share(produce)]

    assert on_all(act, store) == [[b"\0\xff", b"\0\xff\0\xff"]] * NUM_RANKS
    assert ran == [0, 0]


def test_together_waits_for_all(store: Store) -> None:
    """Nobody goes on before every rank has acted, time after time, and each gets its own value."""
    acted: list[int] = []

    def act(world: World) -> list[tuple[int, int]]:
        found = []
        for step in range(1, 4):
            time.sleep(0.02 * (world.rank + step) % 0.05)
            value = world.together(lambda: acted.append(world.rank) or world.rank)  # type: ignore[func-returns-value]
            found.append((value, min(len(acted), step * NUM_RANKS)))
            world.together(lambda: None)
        return found

    steps = [NUM_RANKS, 2 * NUM_RANKS, 3 * NUM_RANKS]
    assert on_all(act, store) == [[(rank, step) for step in steps] for rank in RANKS]


def test_gather_is_in_rank_order_on_rank_0(store: Store) -> None:
    """Rank 0 gets every rank's bytes in rank order, equal ones too, time after time; the others get
    nothing.
    """

    def act(world: World) -> list[list[bytes]]:
        found = [
            world.gather(b"%d\xff" % world.rank),
            world.gather(b""),
            world.gather(b"%d" % (world.rank % 2)),
        ]
        world.share(lambda: b"")
        return found

    first = [[b"0\xff", b"1\xff", b"2\xff"], [b""] * NUM_RANKS, [b"0", b"1", b"0"]]
    assert on_all(act, store) == [first, [[], [], []], [[], [], []]]
    assert store.num_keys() == 0


def test_the_run_has_one_id(store: Store) -> None:
    """All ranks of a world know one run id, another world has another one."""
    first, second = (on_all(lambda world: world.run_id, store, name=name) for name in "ab")
    assert len(set(first)) == len(set(second)) == 1
    assert first != second


def test_values_that_are_the_same_pass(store: Store) -> None:
    """`same` returns on all ranks where they agree."""
    assert on_all(lambda world: world.same("the plan", "x"), store) == [None] * NUM_RANKS


def test_values_that_differ_stop_all_ranks(store: Store) -> None:
    """A rank with another value is named with both values, and all raise that."""

    def act(world: World) -> ExportError:
        return error_of(world, lambda w: w.same("the plan", "other" if w.rank == 2 else "plan"))

    errors = [error.to_json() for error in on_all(act, store)]
    assert errors == [errors[0]] * NUM_RANKS
    assert errors[0]["what"] == "the ranks disagree on the plan"
    assert (errors[0]["expected"], errors[0]["got"]) == ("plan (rank 0)", "other")
    assert errors[0]["where"] == {"rank": "2"}


def test_progress_is_seen(store: Store) -> None:
    """What a rank posts, rank 0 reads, with a beat that moves although no counter does."""

    def act(world: World) -> dict[int, dict[str, Any]]:
        world.counters = lambda: {"read": 10 + world.rank}
        world.post_progress({"read": 10 + world.rank})
        world.post_progress({"read": 0})  # too soon to be posted
        world.together(lambda: None)
        first = world.progress_of([1, 2])
        world.together(lambda: time.sleep(0.4 if world.rank == 1 else 0))
        second = world.progress_of([2])
        world.together(lambda: None)
        return {**first, 3: second[2]}

    seen = on_all(act, store)[0]
    assert {rank: each["read"] for rank, each in seen.items()} == {1: 11, 2: 12, 3: 12}
    assert seen[3]["beat"] > seen[2]["beat"] >= 1


# --- failure


def endless(world: World, act: Callable[[], Any]) -> None:
    """A wait for what never comes."""
    act()
    world.wait(lambda: False)


STEPS: dict[str, Callable[[World, Callable[[], Any]], object]] = {
    "share": lambda world, act: world.share(act) if world.rank == 0 else (act(), world.share(act)),
    "together": lambda world, act: world.together(act),
    "gather": lambda world, act: (act(), world.gather(b"x")),
    "wait": endless,
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("guilty", RANKS)
def test_a_failure_of_one_rank_is_heard_by_all(store: Store, step: str, guilty: int) -> None:
    """Wherever the others wait, they raise within a second, and every rank ends with the same error."""

    def fail(world: World) -> bytes:
        if world.rank == guilty:
            raise TargetError("no space", where={"file": "f"}, advice="buy a disk", findings=["a", "b"])
        return b""

    heard: dict[int, ExportError] = {}

    def act(world: World) -> ExportError:
        def steps(world: World) -> None:
            try:
                STEPS[step](world, lambda: fail(world))
                world.share(lambda: b"")
                world.together(lambda: None)
            except ExportError as error:
                heard[world.rank] = error
                raise

        return error_of(world, steps)

    begun = time.monotonic()
    errors = on_all(act, store)
    assert time.monotonic() - begun < 3
    for rank in set(RANKS) - {guilty}:
        assert isinstance(heard[rank], PeerError)
        assert heard[rank].what == f"rank {guilty} failed: no space"
        assert heard[rank].where == {"rank": str(guilty)}
    assert all(error.to_json() == errors[0].to_json() for error in errors)
    assert isinstance(errors[0], TargetError)
    assert (errors[0].where, errors[0].findings) == ({"rank": str(guilty), "file": "f"}, ("a", "b"))


def test_several_failures_are_one_error(store: Store) -> None:
    """The first origin in rank order is the error, and those of other ranks are findings of it."""
    barrier = threading.Barrier(NUM_RANKS)

    def act(world: World) -> ExportError:
        def fail(world: World) -> None:
            barrier.wait(10)
            raise TargetError(f"full at {world.rank}")

        return error_of(world, fail)

    errors = [error.to_json() for error in on_all(act, store)]
    assert errors == [errors[0]] * NUM_RANKS
    assert errors[0]["what"] == "full at 0"
    assert errors[0]["findings"] == [f"rank {rank} also failed: full at {rank}" for rank in (1, 2)]


def test_one_rank_speaks_where_rank_0_is_silent(store: Store) -> None:
    """Without a sign of life of rank 0, exactly one other takes the floor, and its word is everybody's."""
    SharedKeys(PrefixStore("w", store)).set("run", b"1")

    def act(rank: int) -> tuple[bool, ExportError | None]:
        world = world_of(rank, store)
        world.fail(TargetError(f"of {rank}"))
        speaks = world.elect_reporter(0.2)
        return speaks, world.agree(TargetError("the cause") if speaks else None, 5)

    with ThreadPoolExecutor(2) as ranks:
        found = list(ranks.map(act, (1, 2)))
    assert sorted(speaks for speaks, _ in found) == [False, True]
    assert [error.what for _, error in found if error] == ["the cause", "the cause"]


def test_a_busy_rank_0_keeps_the_floor(store: Store) -> None:
    """Where rank 0 is alive but has not failed yet, no other rank speaks in its place."""
    first, second = (world_of(rank, store) for rank in (0, 1))
    assert second.elect_reporter(5) is False
    assert first.elect_reporter(0) is True
    first.close(0)
    second.close(0)


def test_ranks_that_say_nothing_are_listed(store: Store) -> None:
    """After the grace the speaker knows who failed, for what, and who stayed silent."""
    worlds = [world_of(rank, store) for rank in (0, 1)]
    worlds[1].fail(PeerError("lost"))
    worlds[0].fail(TargetError("full"))
    failures, silent = worlds[0].failures(0.1)
    assert [(f.rank, f.error["what"], f.is_origin) for f in failures] == [
        (0, "full", True),
        (1, "lost", False),
    ]
    assert silent == [2]
    for world in worlds:
        world.close(0)


def test_a_verdict_that_never_comes_is_not_waited_for(store: Store) -> None:
    """`agree` gives up after its time, and the rank's own error stands."""
    SharedKeys(PrefixStore("w", store)).set("run", b"1")
    begun = time.monotonic()
    assert world_of(1, store).agree(None, 0.1) is None
    assert time.monotonic() - begun < 2


def test_a_rank_that_never_comes_is_no_progress(store: Store) -> None:
    """Ranks that wait for one that does nothing stop after the stall time, and it is named."""

    def act(world: World) -> ExportError | None:
        if world.rank == 2:
            time.sleep(1)
            return None
        return error_of(world, lambda w: w.together(lambda: None))

    found = on_all(act, store, stall_seconds=0.3)
    for error in found[:2]:
        assert error is not None
        assert "no progress" in error.what
        assert error.where["rank"] in ("0", "2")


def test_only_own_failures_are_origins() -> None:
    """A rank that stopped because of another one, or of a signal, is not where it began."""
    kinds = {"PeerError": False, "StoppedError": False, "TargetError": True, "ExportError": True}
    assert {kind: Failure(1, {"kind": kind}).is_origin for kind in kinds} == kinds


def test_a_world_of_one_needs_nobody() -> None:
    """All steps return at once, a failure is one's own, and there is no pulse and no carrier."""
    num_threads = threading.active_count()
    world = process_groups.alone(stall_seconds=1)
    assert threading.active_count() == num_threads
    assert world.share(lambda: b"x") == b"x"
    assert world.together(lambda: 5) == 5
    assert world.gather(b"x") == [b"x"]
    world.same("x", "y")
    world.receive({}, 0)
    error = TargetError("full")
    assert abort(world, None, error) is error
    assert json.dumps(error.to_json())
    world.close()
