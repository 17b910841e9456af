"""The threads of a rank. Workers do what blocks; the main thread only listens to them and to the other
ranks.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from pp_export.core import errors
from pp_export.core.errors import ExportError
from pp_export.distributed.world import World
from pp_export.process.recorder import Recorder

Item = TypeVar("Item")
Result = TypeVar("Result")

_LOOK_SECONDS = 0.1


class Progress:
    """Counters of one rank, added to by its workers: bytes `read`, `written` and `verified`, and `shards`;
    bytes of an earlier run that are `checked`; and the `recorder` of what they did when.
    """

    def __init__(self) -> None:
        self.recorder = Recorder()
        self._lock = threading.Lock()
        self._counts = {"read": 0, "written": 0, "shards": 0, "verified": 0, "checked": 0}
        self._doing: dict[str, str] = {}

    def add(self, name: str, amount: int) -> None:
        with self._lock:
            self._counts[name] += amount

    def doing(self, what: str) -> None:
        """What the calling worker is at, for the error when it hangs."""
        with self._lock:
            self._doing[threading.current_thread().name] = what

    def snapshot(self) -> dict[str, Any]:
        """All counters, and what each worker is `doing`."""
        with self._lock:
            return {**self._counts, "doing": dict(self._doing)}


class StoppedWorkerError(Exception):
    """Another worker of this rank failed; raised in a worker by `Crew.check`, and seen by nobody else."""


@contextmanager
def located(rank: int, **where: object) -> Iterator[None]:
    """Give every error of a worker the place where it happened."""
    try:
        yield
    except StoppedWorkerError:
        raise
    except ExportError as error:
        error.at(rank=rank, **where)
        raise
    except Exception as error:
        raise errors.unforeseen(error).at(rank=rank, **where) from error


class Crew:
    """The workers of one phase on one rank, used by its main thread.

    `ahead` gives work of its own thread to whoever wants its results; `run` starts everything and waits.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._stop = threading.Event()
        self._works: list[tuple[str, Callable[[], None]]] = []

    def check(self) -> None:
        """Called by workers wherever they wait: raises StoppedWorkerError when all are to stop."""
        if self._stop.is_set():
            raise StoppedWorkerError

    def add(self, name: str, work: Callable[[], None]) -> None:
        """One more worker, which does `work` under this name."""
        self._works.append((name, work))

    def exhaust(self, name: str, items: Iterable[object]) -> None:
        """One more worker, which takes all items, so that they are made."""

        def take() -> None:
            for _ in items:
                pass

        self.add(name, take)

    def ahead(self, name: str, items: Iterable[Item], limit: int = 0) -> Iterator[Item]:
        """The same items, made by a worker of their own while whoever takes them is busy with earlier ones.

        `limit` bounds how many wait to be taken; where it is 0, the memory that they lie in does.
        """
        made: WorkQueue[Item] = WorkQueue(self.check, limit)
        self.add(name, lambda: _feed(items, made.put, made.close))
        return iter(made)

    def in_parallel(
        self, name: str, items: Iterable[Item], act: Callable[[Item], Result], num_workers: int
    ) -> Iterator[Result]:
        """What `act` makes of the items, in their order, by so many workers at once; one more takes the items
        one by one, a few ahead of them.
        """
        to_do: WorkQueue[Task[Item, Result]] = WorkQueue(self.check)
        tasks: WorkQueue[Task[Item, Result]] = WorkQueue(self.check, 2 * num_workers)

        def put(item: Item) -> None:
            task: Task[Item, Result] = Task(item)
            tasks.put(task)
            to_do.put(task)

        def close() -> None:
            tasks.close()
            for _ in range(num_workers):
                to_do.close()

        def work() -> None:
            for task in to_do:
                task.run(act)

        self.add(f"{name} (feeder)", lambda: _feed(items, put, close))
        for number in range(num_workers):
            self.add(f"{name} {number}", work)
        return (task.result(self.check) for task in tasks)

    def run(self, on_poll: Callable[[], None]) -> None:
        """Do all work that was added; called by the main thread. Raises the first error of a worker, or of
        another rank. Workers are then asked to end; one that is blocked in a transfer ends by
        `Data.end_transfers`.
        """
        raised: list[BaseException] = []

        def guard(work: Callable[[], None]) -> None:
            try:
                work()
            except StoppedWorkerError:
                pass
            except BaseException as error:  # noqa: BLE001  raised again by the main thread
                raised.append(error)
                self._stop.set()

        threads = [
            threading.Thread(target=guard, args=(work,), name=name, daemon=True) for name, work in self._works
        ]

        def finished() -> bool:
            on_poll()
            if raised:
                raise raised[0]
            return not any(thread.is_alive() for thread in threads)

        workers: list[threading.Thread] = []
        self._world.data.workers = workers
        try:
            for thread in threads:
                thread.start()
                workers.append(thread)  # one that a signal kept from starting can't be joined
            self._world.control.wait(finished)
        finally:
            self._stop.set()
        if raised:
            raise raised[0]


def _feed(items: Iterable[Item], put: Callable[[Item], None], close: Callable[[], None]) -> None:
    """The life of a worker that makes items for others."""
    try:
        for item in items:
            put(item)
        close()
    finally:
        if isinstance(items, Generator):
            items.close()  # what it holds, threads too, ends now and not when it is collected


class Task(Generic[Item, Result]):
    """An item that one worker acts on, and another waits for."""

    def __init__(self, item: Item) -> None:
        self._item, self._is_done = item, threading.Event()
        self._result: list[Result] = []

    def run(self, act: Callable[[Item], Result]) -> None:
        """Make the result; an error is its worker's."""
        self._result.append(act(self._item))
        self._is_done.set()

    def result(self, check: Callable[[], None]) -> Result:
        """The result, once it is there; `check` is called now and then, and raises when a worker failed."""
        while not self._is_done.wait(_LOOK_SECONDS):
            check()
        return self._result.pop()


class WorkQueue(Generic[Item]):
    """Items on their way from one worker to another, in order; iterating ends when the giver closes it."""

    def __init__(self, check: Callable[[], None], limit: int = 0) -> None:
        self._check = check
        self._items: queue.Queue[tuple[Item] | None] = queue.Queue(limit)

    def put(self, item: Item) -> None:
        """Add an item, as soon as fewer than the limit wait."""
        self._put((item,))

    def close(self) -> None:
        """There are no more items."""
        self._put(None)

    def _put(self, held: tuple[Item] | None) -> None:
        while True:
            self._check()
            try:
                return self._items.put(held, timeout=_LOOK_SECONDS)
            except queue.Full:
                continue

    def get(self) -> Item | None:
        """The next item, or None when there are no more."""
        while True:
            self._check()
            try:
                held = self._items.get(timeout=_LOOK_SECONDS)
            except queue.Empty:
                continue
            return None if held is None else held[0]

    def __iter__(self) -> Iterator[Item]:
        while (item := self.get()) is not None:
            yield item
