"""The threads of a rank. Workers do what blocks; the main thread only listens to them and to the other
ranks.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

from pp_export.distributed.world import World
from pp_export.process.recorder import Recorder

Item = TypeVar("Item")

_LOOK_SECONDS = 0.1


class Progress:
    """Counters of one rank, added to by its workers: bytes `read`, `written` and `verified`, and `shards`;
    and the `recorder` of what they did when.
    """

    def __init__(self) -> None:
        self.recorder = Recorder()
        self._lock = threading.Lock()
        self._counts = {"read": 0, "written": 0, "shards": 0, "verified": 0}
        self._doing: dict[str, str] = {}

    def add(self, name: str, amount: int) -> None:
        with self._lock:
            self._counts[name] += amount

    def doing(self, worker: str, what: str) -> None:
        """What a worker is at, for the error when it hangs."""
        with self._lock:
            self._doing[worker] = what

    def snapshot(self) -> dict[str, Any]:
        """All counters, and what each worker is `doing`."""
        with self._lock:
            return {**self._counts, "doing": dict(self._doing)}


class StoppedWorkerError(Exception):
    """Another worker of this rank failed; raised in a worker by `Crew.check`, and seen by nobody else."""


class Crew:
    """The workers of one phase on one rank, used by its main thread.

    `ahead` gives work of its own thread to whoever wants its results; `run` starts everything and waits.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._stop = threading.Event()
        self._works: list[Callable[[], None]] = []

    def check(self) -> None:
        """Called by workers wherever they wait: raises StoppedWorkerError when all are to stop."""
        if self._stop.is_set():
            raise StoppedWorkerError

    def add(self, work: Callable[[], None]) -> None:
        """One more worker, which does `work`."""
        self._works.append(work)

    def ahead(self, items: Iterable[Item], limit: int = 0) -> Iterator[Item]:
        """The same items, made by a worker of their own while whoever takes them is busy with earlier ones.

        `limit` bounds how many wait to be taken; where it is 0, the memory that they lie in does.
        """
        made: WorkQueue[Item] = WorkQueue(self.check, limit)

        def make() -> None:
            try:
                for item in items:
                    made.put(item)
                made.close()
            finally:
                if isinstance(items, Generator):
                    items.close()  # what it holds, threads too, ends now and not when it is collected

        self.add(make)
        return iter(made)

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

        threads = [threading.Thread(target=guard, args=(work,), daemon=True) for work in self._works]

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


def each_of(items: Sequence[Item], act: Callable[[Item], None], crew: Crew, num_workers: int) -> None:
    """Let `num_workers` workers of the crew do `act` for all items, each taking the next one."""
    waiting, lock = list(items), threading.Lock()

    def work() -> None:
        while True:
            crew.check()
            with lock:
                if not waiting:
                    return
                item = waiting.pop(0)
            act(item)

    for _ in range(num_workers):
        crew.add(work)
