"""Claims of `pp_export.distributed.tree`: what holds for a few ranks holds for many in blocks, and no store
sees all of them.
"""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pp_export.core.errors import ExportError, PeerError, TargetError
from pp_export.distributed.shared_keys import SharedKeys
from pp_export.distributed.tree import Seat, block_size, pack, unpack
from pp_export.distributed.world import World
from tests.fixtures.worlds import Town, error_of

SIZES = [(7, 3), (9, 3), (4, 1), (5, 4), (3, 8)]
"""Ranks, and ranks per block: the last block is smaller, alike, or of one rank, or there is one block."""


@pytest.mark.parametrize(("size", "block"), SIZES)
def test_steps_are_as_in_one_block(size: int, block: int) -> None:
    """Shared, scattered and gathered values are the right ones in rank order on the right ranks, time after
    time, large ones and replicas too; afterwards no store has a key.
    """
    town = Town(size, block)
    town.main.set("the job's own", "kept")
    large = b"\0\xff" * 20_000

    def act(world: World) -> list[object]:
        control, rank = world.control, world.rank
        return [
            control.share(lambda: b"a\xff"),
            control.gather(b"%d" % rank),
            control.scatter(lambda: [b"to %d" % to for to in range(size)]),
            control.gather(large if rank % 2 else b""),
            control.together(lambda: rank),
            control.on_first(lambda: "acted"),
            control.scatter(lambda: [large] * size) == large,
        ]

    found = town.on_all(act)
    for rank, own in enumerate(found):
        gathered = (
            [b"%d" % each for each in range(size)],
            [large if each % 2 else b"" for each in range(size)],
        )
        first, second = gathered if rank == 0 else ([], [])
        assert own == [
            b"a\xff",
            first,
            b"to %d" % rank,
            second,
            rank,
            "acted" if rank == 0 else None,
            True,
        ]
    assert len(town.served) == -(-size // block) - 1
    assert town.main.num_keys() == 1
    assert town.main.get("the job's own") == b"kept"


def test_nobody_goes_on_before_all_have_acted() -> None:
    """`together` waits for the slowest rank of another block."""
    acted: list[int] = []

    def act(world: World) -> int:
        def slowly() -> None:
            time.sleep(0.2 if world.rank == 7 else 0)
            acted.append(world.rank)

        world.control.together(slowly)
        return len(acted)

    assert Town(9, 3).on_all(act) == [9] * 9


@pytest.mark.parametrize("guilty", range(7))
def test_a_failure_anywhere_ends_all_with_one_error(guilty: int) -> None:
    """A failure of rank 0, of a first rank, or of a member of any block is heard by all, with its words, and
    leaves no key in the world's store.
    """
    town = Town(7, 3)

    def act(world: World) -> ExportError:
        def steps(world: World) -> None:
            world.control.together(lambda: None)
            if world.rank == guilty:
                raise TargetError("no space", where={"file": "f"})
            world.control.together(lambda: None)

        return error_of(world, steps)

    begun = time.monotonic()
    errors = town.on_all(act)
    assert time.monotonic() - begun < 4
    assert all(error.to_json() == errors[0].to_json() for error in errors)
    assert (errors[0].what, errors[0].where) == ("no space", {"rank": str(guilty), "file": "f"})
    assert town.main.num_keys() == 0


def ends(town: Town, guilty: int, how: Callable[[World], None]) -> list[ExportError | None]:
    """The errors of all ranks when one does not take the second step."""

    def act(world: World) -> ExportError | None:
        world.control.together(lambda: None)
        if world.rank == guilty:
            how(world)
            return None
        return error_of(world, lambda w: w.control.together(lambda: None))

    return town.on_all(act)


@pytest.mark.parametrize("guilty", [0, 1, 3, 4, 6])
def test_a_silent_rank_is_named(guilty: int) -> None:
    """A rank whose main thread does nothing any more is named after the stall time, be it rank 0, the first
    of a block, or any other; nobody else is.
    """
    town = Town(7, 3, stall_seconds=1.0)

    def stop(world: World) -> None:
        world.liveness.stop()  # what SIGSTOP does to the heartbeat
        time.sleep(5)

    errors = ends(town, guilty, stop)
    for rank, error in enumerate(errors):
        if rank != guilty:
            assert error is not None
            assert error.to_json() == next(e.to_json() for e in errors if e is not None)
            assert "no progress for 1 s" in error.what
            assert f"rank {guilty} ended without a word" in str(error.findings)
            assert guilty == 0 or error.where["rank"] == str(guilty)


class Gone(SharedKeys):
    """A store whose process was killed, as soon as `is_gone` is set."""

    is_gone = threading.Event()

    def _call(self, call: Callable[..., Any]) -> Any:
        def fail(*_: object) -> None:
            raise RuntimeError("Connection reset by peer")

        is_block = self._whose.startswith("the store of rank 3")
        return super()._call(fail if is_block and self.is_gone.is_set() else call)


def test_a_block_whose_first_rank_is_killed_ends_all() -> None:
    """The ranks of its block lose their store, say so in the world's, and the killed rank is named."""
    town = Town(7, 3, keys=Gone)

    def die(world: World) -> None:
        time.sleep(0.5)  # its block has taken the first step
        Gone.is_gone.set()

    Gone.is_gone.clear()
    errors = ends(town, 3, die)
    for rank in (0, 1, 2, 4, 5, 6):
        error = errors[rank]
        assert error is not None
        assert "the store of rank 3" in str(error)
        assert "rank 3 ended without a word" in str(error.findings)


class Frozen(SharedKeys):
    """A store whose process is stopped: calls don't return, for the ranks of the block of rank 3."""

    is_frozen = threading.Event()
    thawed = threading.Event()

    def _call(self, call: Callable[..., Any]) -> Any:
        def hang(store: object) -> Any:
            self.thawed.wait(30)
            return call(store)

        is_block = self._whose.startswith("the store of rank 3")
        return super()._call(hang if is_block and self.is_frozen.is_set() else call)


def test_a_block_whose_first_rank_is_stopped_ends_all() -> None:
    """Its ranks are held up by a store that does not answer, yet hear what rank 0 finds, or find it out
    themselves; the stopped rank is named.
    """
    town = Town(7, 3, keys=Frozen, stall_seconds=1.5)
    over = threading.Event()

    def stop(world: World) -> None:
        time.sleep(0.5)  # its block has taken the first step
        Frozen.is_frozen.set()
        over.wait(20)

    Frozen.is_frozen.clear()
    Frozen.thawed.clear()
    done: Counter[str] = Counter()

    def act(world: World) -> ExportError | None:
        world.control.together(lambda: None)
        if world.rank == 3:
            stop(world)
            return None
        try:
            return error_of(world, lambda w: w.control.together(lambda: None))
        finally:
            done["ranks"] += 1
            if done["ranks"] == 6:
                over.set()
                Frozen.thawed.set()

    begun = time.monotonic()
    errors = town.on_all(act)
    assert time.monotonic() - begun < 15
    for rank in (0, 1, 2, 4, 5, 6):
        error = errors[rank]
        assert error is not None
        assert (error.what, error.where["rank"]) == ("no progress for 2 s", "3")


def test_a_rank_may_come_late() -> None:
    """First ranks and others that come later than all the rest are waited for."""
    town = Town(6, 2)
    world_of = town.world_of

    def late(rank: int) -> World:
        time.sleep({0: 0.3, 2: 0.6, 5: 0.4}.get(rank, 0))
        return world_of(rank)

    town.world_of = late  # type: ignore[method-assign]
    assert town.on_all(lambda world: world.control.share(lambda: b"x")) == [b"x"] * 6


def test_a_first_rank_that_never_comes_is_named() -> None:
    """Its block waits no longer than the stall time, and says whom for."""
    town = Town(4, 2, stall_seconds=0.2)
    with pytest.raises(PeerError, match="rank 2 has not come within 0 s") as caught:
        town.world_of(3)
    assert caught.value.where == {"rank": "2"}


def test_a_closed_world_ends_without_a_collector() -> None:
    """Nothing of a closed world, its connections included, waits for Python's collector, which training jobs
    turn off.
    """
    town, kept = Town(4, 2), list[weakref.ref[object]]()

    class Kept(SharedKeys):
        def __init__(self, store: Any, **how: Any) -> None:
            super().__init__(store, **how)
            kept.append(weakref.ref(self))

    town.keys = Kept

    def act(world: World) -> None:
        kept.extend(map(weakref.ref, (world, world.control, world.liveness, world.abort)))
        world.announcements.post(f"{world.rank}")
        world.control.together(lambda: None)
        assert world.announcements.has("0", 0)
        world.control.together(lambda: None)

    gc.disable()
    try:
        town.on_all(act)
        deadline = time.monotonic() + 5
        while any(each() is not None for each in kept) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert [each() for each in kept if each() is not None] == []
    finally:
        gc.enable()
    assert len(kept) == 4 * 4 + 4 + 2, "worlds and roles; a connection each, and both ends of a block's"


class Counting(SharedKeys):
    """Counts the requests of steps that each store gets, and the clients that it has. Looks for a key are not
    counted: their number is a matter of time.
    """

    requests: ClassVar[Counter[object]] = Counter()
    clients: ClassVar[Counter[object]] = Counter()
    lock = threading.Lock()

    def __init__(self, store: Any, **how: Any) -> None:
        super().__init__(store, **how)
        self._which = id(store)
        with self.lock:
            self.clients[self._which] += 1

    def _count(self, key: str) -> None:
        with self.lock:
            self.requests[self._which] += key.startswith(("block/", "firsts/"))

    def set(self, key: str, value: bytes) -> None:
        self._count(key)
        super().set(key, value)

    def get(self, key: str) -> bytes:
        self._count(key)
        return super().get(key)

    def set_many(self, values: Mapping[str, bytes]) -> None:
        self._count(next(iter(values)))
        super().set_many(values)

    def get_many(self, keys: Sequence[str]) -> list[bytes]:
        self._count(keys[0])
        return super().get_many(keys)


def most_requests(size: int, block: int, step: Callable[[World], object]) -> int:
    """The requests of one step at the store that gets most of them."""
    town = Town(size, block, keys=Counting, stall_seconds=60)
    all_here = threading.Barrier(size)

    def act(world: World) -> int:
        all_here.wait(60)
        step(world)
        all_here.wait(60)
        most = max(Counting.requests.values())
        all_here.wait(60)
        return most

    Counting.requests.clear()
    return max(town.on_all(act))


STEPS: Mapping[str, Callable[[World], object]] = {
    "share": lambda world: world.control.share(lambda: b"x"),
    "together": lambda world: world.control.together(lambda: None),
    "scatter": lambda world: world.control.scatter(lambda: [b"x"] * world.size),
    "gather": lambda world: (world.control.gather(b"%d" % world.rank), world.control.share(lambda: b"")),
}


@pytest.mark.parametrize("step", STEPS)
def test_no_store_sees_all_ranks(step: str) -> None:
    """A step's requests at one store grow with the root of the number of ranks: of 64 ranks in 8 blocks, no
    store hears more in a step than four for each of 16, besides the looks of those that wait.
    """
    size, block = 64, 8
    assert most_requests(size, block, STEPS[step]) <= 4 * (block + size // block)
    Counting.clients.clear()
    Town(size, block, keys=Counting).on_all(lambda world: None)
    own, *others = sorted(Counting.clients.values(), reverse=True)
    assert own == size  # these connections to a launcher's store are there anyway
    assert max(others) <= block


def test_two_ranks_need_few_requests() -> None:
    """A step of two ranks is what one sets and the other gets: no more than four, besides looks."""
    assert {name: most_requests(2, 128, step) for name, step in STEPS.items()} == {
        "share": 2,
        "together": 4,
        "scatter": 2,
        "gather": 4,
    }


def test_progress_of_all_ranks_is_seen_in_a_few_requests() -> None:
    """Rank 0 sees what every rank of every block posted, with a look and a request for each kind of key."""
    town = Town(20, 4)
    asked: list[int] = []

    class Asked(SharedKeys):
        def get_many(self, keys: Sequence[str]) -> list[bytes]:
            asked.append(len(keys))
            return super().get_many(keys)

    town.keys = Asked

    def act(world: World) -> dict[int, dict[str, Any]]:
        world.liveness.counters = lambda: {"read": 10 + world.rank, "doing": {"reader": f"of {world.rank}"}}
        end = time.monotonic() + 1.5
        world.control.wait(lambda: time.monotonic() > end)
        world.control.together(lambda: None)
        time.sleep(0.2)
        asked.clear()
        seen = world.liveness.progress_of(range(20)) if world.rank == 0 else {}
        world.control.share(lambda: b"%d" % len(asked))
        return seen

    seen = town.on_all(act)[0]
    assert {rank: each["read"] for rank, each in seen.items()} == {rank: 10 + rank for rank in range(20)}
    assert seen[19]["doing"] == {"reader": "of 19"}


# --- geometry and packing


@given(st.integers(1, 40_000))
def test_blocks_are_no_more_than_their_ranks(num_ranks: int) -> None:
    """Neither blocks nor ranks of a block are many more than the root of all; few ranks are one block."""
    size = block_size(num_ranks)
    num_blocks = Seat(0, num_ranks, size).num_blocks
    assert num_blocks <= size
    assert size == 128 or size - 1 < num_ranks**0.5 + 1
    assert num_blocks == 1 or num_ranks > 128


@given(st.integers(1, 60), st.integers(1, 20))
def test_every_rank_sits_in_one_block(num_ranks: int, size: int) -> None:
    """Blocks are consecutive, cover all ranks, and have one first rank each."""
    seats = [Seat(rank, num_ranks, size) for rank in range(num_ranks)]
    assert [rank for block in range(seats[0].num_blocks) for rank in seats[0].ranks_of(block)] == list(
        range(num_ranks)
    )
    assert all(seat.rank in seat.members for seat in seats)
    assert sum(seat.is_first for seat in seats) == seats[0].num_blocks
    assert {seat.first_of(seat.rank) for seat in seats} == {s.rank for s in seats if s.is_first}


@given(st.lists(st.binary(max_size=5)))
def test_packed_values_come_back(values: Sequence[bytes]) -> None:
    """Any values, empty and equal ones too, come back in their order; equal ones are packed once."""
    assert unpack(pack(values)) == values
    assert len(pack([b"x" * 1000] * 50)) < 1300
