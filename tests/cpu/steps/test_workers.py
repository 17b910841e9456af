"""Claims of `pp_export.steps.workers`: workers hand on everything in order, and when one fails all of them
end.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from pp_export.core.errors import TargetError
from pp_export.distributed.alone import alone
from pp_export.distributed.world import World
from pp_export.steps.workers import Crew, Progress


@pytest.fixture
def world() -> Iterator[World]:
    world = alone(stall_seconds=30)
    yield world
    world.close()


def test_items_come_in_order_from_workers_of_their_own(world: World) -> None:
    """Everything that is made ahead arrives once and in order, each step in a thread of its own."""
    crew = Crew(world)
    threads: set[int] = set()
    got: list[int] = []

    def make() -> Iterator[int]:
        for number in range(100):
            threads.add(threading.get_ident())
            yield number

    doubled = (2 * number for number in crew.ahead("maker", make()))
    crew.add("taker", lambda: got.extend(doubled))
    crew.run(lambda: None)
    assert got == [2 * number for number in range(100)]
    assert threads.isdisjoint({threading.get_ident()})


def test_the_first_error_ends_all_workers(world: World) -> None:
    """A worker that waits for one that failed ends too, and the error that is raised is the cause."""
    crew, ended = Crew(world), threading.Event()

    def make() -> Iterator[int]:
        yield 1
        raise TargetError("full")

    made = crew.ahead("maker", make())

    def take() -> None:
        try:
            raise AssertionError(f"this never ends well: {list(made)}")
        finally:
            ended.set()

    crew.add("taker", take)
    with pytest.raises(TargetError, match="full"):
        crew.run(lambda: None)
    assert ended.wait(5)


def test_items_are_done_by_several_at_once_and_come_in_order(world: World) -> None:
    """Each item is done exactly once, as many at a time as there are workers; results keep the items' order,
    however long each takes.
    """
    crew, together = Crew(world), threading.Barrier(4, timeout=10)
    got: list[int] = []

    def act(item: int) -> int:
        if item < 4:
            together.wait()  # nobody passes unless four are at it
        time.sleep(0.002 * (item % 3))
        return 10 * item

    made = crew.in_parallel("worker", range(50), act, 4)
    crew.add("taker", lambda: got.extend(made))
    crew.run(lambda: None)
    assert got == [10 * item for item in range(50)]


def test_items_are_not_taken_far_ahead_of_their_results(world: World) -> None:
    """Whoever makes items is asked for a few more than are being done, and no more while nobody takes any."""
    crew, made, wait = Crew(world), 0, threading.Event()

    def make() -> Iterator[int]:
        nonlocal made
        while made < 1000:
            made += 1
            yield made

    results = crew.in_parallel("worker", make(), lambda item: item, 2)

    def take() -> None:
        time.sleep(0.3)
        assert made < 10
        wait.set()
        assert list(results) == list(range(1, 1001))

    crew.add("taker", take)
    crew.run(lambda: None)
    assert wait.is_set()


def test_a_failed_item_keeps_the_others_from_being_begun(world: World) -> None:
    """After an error no worker takes another item."""
    crew = Crew(world)
    begun: list[int] = []

    def act(item: int) -> None:
        begun.append(item)
        if item == 1:
            raise TargetError("broken")
        time.sleep(0.3)

    crew.exhaust("taker", crew.in_parallel("worker", range(50), act, 2))
    with pytest.raises(TargetError, match="broken"):
        crew.run(lambda: None)
    time.sleep(0.5)
    assert len(begun) <= 3


def test_the_main_thread_is_asked_while_workers_work(world: World) -> None:
    """`on_poll` is called meanwhile, and what it raises ends the workers."""
    crew = Crew(world)
    polled: list[int] = []

    def stop() -> None:
        polled.append(1)
        if len(polled) == 3:
            raise KeyboardInterrupt

    def work() -> None:
        while True:
            crew.check()
            time.sleep(0.01)

    crew.add("worker", work)
    with pytest.raises(KeyboardInterrupt):
        crew.run(stop)
    world.data.workers[0].join(5)
    assert not world.data.workers[0].is_alive()


def test_progress_is_counted_and_told() -> None:
    """Counters add up, and what each worker does last is told with them."""
    progress = Progress()
    progress.add("read", 3)
    progress.add("read", 4)
    progress.doing("reading a")
    progress.doing("reading b")
    told, worker = progress.snapshot(), threading.current_thread().name
    assert (told["read"], told["written"], told["doing"]) == (7, 0, {worker: "reading b"})
