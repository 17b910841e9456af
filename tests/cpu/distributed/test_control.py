"""Claims of `pp_export.distributed.control`: what ranks tell each other arrives, and nobody waits for a rank
that failed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from torch.distributed import Store  # type: ignore[attr-defined]

from pp_export.core.errors import ExportError, PeerError, TargetError
from pp_export.distributed.world import World
from tests.fixtures.worlds import NUM_RANKS, RANKS, error_of, on_all


def test_share_gives_everybody_what_rank_0_made(store: Store) -> None:
    """`produce` runs on rank 0 alone and its bytes, any bytes, are on all ranks."""
    ran: list[int] = []

    def act(world: World) -> list[bytes]:
        def produce() -> bytes:
            ran.append(world.rank)
            return b"\0\xff" * len(ran)

        return [world.control.share(produce), world.control.share(produce)]

    assert on_all(act, store) == [[b"\0\xff", b"\0\xff\0\xff"]] * NUM_RANKS
    assert ran == [0, 0]


def test_scatter_gives_each_rank_its_own(store: Store) -> None:
    """`make` runs on rank 0 alone; every rank gets its own value, any bytes, time after time."""
    ran: list[int] = []

    def act(world: World) -> list[bytes]:
        def make() -> list[bytes]:
            ran.append(world.rank)
            return [b"\0\xff%d" % rank * len(ran) for rank in RANKS]

        return [world.control.scatter(make), world.control.scatter(make)]

    assert on_all(act, store) == [[b"\0\xff%d" % rank, b"\0\xff%d" % rank * 2] for rank in RANKS]
    assert ran == [0, 0]


def test_the_first_rank_acts_before_the_others_go_on(store: Store) -> None:
    """`on_first` acts on rank 0 alone, its value of any type stays there, and the others wait for it."""
    acted: list[int] = []

    def act(world: World) -> list[object]:
        def slowly() -> set[int]:
            time.sleep(0.1)
            acted.append(world.rank)
            return {7}

        return [world.control.on_first(slowly), list(acted), world.control.on_first(lambda: None)]

    assert on_all(act, store) == [[{7}, [0], None], [None, [0], None], [None, [0], None]]


def test_together_waits_for_all(store: Store) -> None:
    """Nobody goes on before every rank has acted, time after time, and each gets its own value."""
    acted: list[int] = []

    def act(world: World) -> list[tuple[int, int]]:
        found = []
        for step in range(1, 4):
            time.sleep(0.02 * (world.rank + step) % 0.05)
            value = world.control.together(lambda: acted.append(world.rank) or world.rank)  # type: ignore[func-returns-value]
            found.append((value, min(len(acted), step * NUM_RANKS)))
            world.control.together(lambda: None)
        return found

    steps = [NUM_RANKS, 2 * NUM_RANKS, 3 * NUM_RANKS]
    assert on_all(act, store) == [[(rank, step) for step in steps] for rank in RANKS]


def test_gather_is_in_rank_order_on_rank_0(store: Store) -> None:
    """Rank 0 gets every rank's bytes in rank order, equal ones too, time after time; the others get
    nothing.
    """

    def act(world: World) -> list[list[bytes]]:
        found = [
            world.control.gather(b"%d\xff" % world.rank),
            world.control.gather(b""),
            world.control.gather(b"%d" % (world.rank % 2)),
        ]
        world.control.share(lambda: b"")
        return found

    first = [[b"0\xff", b"1\xff", b"2\xff"], [b""] * NUM_RANKS, [b"0", b"1", b"0"]]
    assert on_all(act, store) == [first, [[], [], []], [[], [], []]]
    assert store.num_keys() == 0


def test_values_that_are_the_same_pass(store: Store) -> None:
    """`same` returns on all ranks where they agree."""
    assert on_all(lambda world: world.control.same({"the plan": "x"}), store) == [None] * NUM_RANKS


def test_values_that_differ_stop_all_ranks(store: Store) -> None:
    """A rank with another value is named with both values, and all raise that."""

    def act(world: World) -> ExportError:
        return error_of(world, lambda w: w.control.same({"the plan": "other" if w.rank == 2 else "plan"}))

    errors = [error.to_json() for error in on_all(act, store)]
    assert errors == [errors[0]] * NUM_RANKS
    assert errors[0]["what"] == "the ranks disagree on the plan"
    assert (errors[0]["expected"], errors[0]["got"]) == ("plan (rank 0)", "other")
    assert errors[0]["where"] == {"rank": "2"}


def by_the_first(step: Callable[[World, Callable[[], Any]], object]) -> Callable[..., object]:
    """A step in which rank 0 acts; another rank that is to fail does so before it."""
    return lambda world, act: step(world, act) if world.rank == 0 else (act(), step(world, act))


def endless(world: World, act: Callable[[], Any]) -> None:
    """A wait for what never comes."""
    act()
    world.control.wait(lambda: False)


STEPS: dict[str, Callable[[World, Callable[[], Any]], object]] = {
    "share": by_the_first(lambda world, act: world.control.share(act)),
    "scatter": by_the_first(lambda world, act: world.control.scatter(lambda: [act()] * NUM_RANKS)),
    "on_first": by_the_first(lambda world, act: world.control.on_first(act)),
    "together": lambda world, act: world.control.together(act),
    "gather": lambda world, act: (act(), world.control.gather(b"x")),
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
                world.control.share(lambda: b"")
                world.control.together(lambda: None)
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
