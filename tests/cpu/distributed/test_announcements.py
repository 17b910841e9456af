"""Claims of `pp_export.distributed.announcements`: who verifies learns which files others have committed."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from pp_export.core.errors import TargetError
from pp_export.distributed.alone import alone
from pp_export.distributed.world import World
from tests.fixtures.worlds import Town, error_of


@pytest.mark.parametrize("block", [2, 7])
def test_a_file_is_there_when_its_writer_said_so(block: int) -> None:
    """Each rank asks from a worker thread for files of every rank, its own too, in its block or another one:
    they are there once they were posted from whatever thread, not before, and not under another name. The
    world's store is empty afterwards.
    """
    town, posted = Town(5, block), threading.Event()

    def act(world: World) -> list[bool]:
        def has(file: str) -> list[bool]:
            return [world.announcements.has(f"{file}-{of}", of) for of in range(world.size)]

        with ThreadPoolExecutor(1) as worker:
            before = worker.submit(has, "shard").result()
            world.control.together(lambda: None)
            worker.submit(world.announcements.post, f"shard-{world.rank}").result()
            world.control.together(posted.set)
            found = [*before, *worker.submit(has, "shard").result(), *worker.submit(has, "other").result()]
        world.control.together(lambda: None)
        return found

    assert town.on_all(act) == [[False] * 5 + [True] * 5 + [False] * 5] * 5
    assert town.main.num_keys() == 0


def test_ranks_of_a_block_ask_their_own_store() -> None:
    """A verifier in the writer's block needs no other connection, and the world's store hears nothing."""
    town = Town(4, 2)

    def act(world: World) -> list[bool]:
        if world.rank == 2:
            world.announcements.post("a")
        while world.rank == 3 and not world.announcements.has("a", 2):
            time.sleep(0.01)
        return [store.check(["committed/a"]) for store in (town.main, town.served.get("block 0", town.main))]

    assert town.on_all(act)[3] == [False, True]
    assert len(town.served) == 1


def test_a_world_of_one_knows_its_own_files() -> None:
    """Without other ranks a file is there when it was posted."""
    world = alone(stall_seconds=5)
    assert not world.announcements.has("a", 0)
    world.announcements.post("a")
    assert world.announcements.has("a", 0)
    assert not world.announcements.has("b", 0)
    world.close()


def test_a_failure_is_no_announcement() -> None:
    """Whoever asks after a rank failed gets an answer or an error, and all end with that failure."""

    def act(world: World) -> str:
        def steps(world: World) -> None:
            if world.rank == 3:
                raise TargetError("no space")
            while not world.announcements.has("a", 3):
                world.control.check()
                time.sleep(0.02)

        return error_of(world, steps).what

    assert Town(4, 2).on_all(act) == ["no space"] * 4
