"""Claims of `pp_export.distributed.data`: what blocks a worker can be ended, and what is in use stays."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import pytest
from torch.distributed import Store  # type: ignore[attr-defined]

from pp_export.distributed.shared_keys import SharedKeys
from pp_export.distributed.wire import Group, Message, Place, Wire
from pp_export.distributed.world import World


@dataclass
class FakeWire:
    """Notes what is done with it; `exchange` blocks until it is interrupted."""

    done: list[str] = field(default_factory=list)
    broken: threading.Event = field(default_factory=threading.Event)
    ends_exchanges: bool = True

    def connect(self, check: Callable[[], None]) -> None:
        self.done.append("connect")

    def exchange(
        self, sent: Sequence[Message], places: Sequence[Place], into: memoryview
    ) -> Callable[[], None]:
        self.broken.wait(10)
        return lambda: None

    def finish(self) -> None:
        self.done.append("finish")

    def interrupt(self) -> None:
        self.done.append("interrupt")
        if self.ends_exchanges:
            self.broken.set()

    def close(self) -> None:
        self.done.append("close")

    def keys(self) -> list[str]:
        return ["address"]

    def leave(self) -> None:
        self.done.append("leave")


@pytest.fixture
def wire() -> Iterator[FakeWire]:
    wire = FakeWire()
    yield wire
    wire.broken.set()


def blocked(wire: FakeWire, store: Store) -> World:
    """A world with one worker that waits for a message, and memory that it uses."""

    def make(group: Group, backend: str) -> Wire:
        return wire

    world = World(0, 1, SharedKeys(store), make, stall_seconds=20)
    made = world.data.connect(Group((0, 1), world.data.begin()), "gloo", lambda: None)
    world.data.workers = [
        threading.Thread(target=made.exchange, args=((), (), memoryview(b"")), daemon=True),
    ]
    world.data.workers[0].start()
    world.data.hold(lambda: wire.done.append("release"))
    return world


def test_workers_have_ended_when_transfers_are_ended(wire: FakeWire, store: Store) -> None:
    """`end_transfers` interrupts the wire, and gives wire and memory back when the workers are done; `close`
    does nothing again. What others may still look for in the store stays.
    """
    world = blocked(wire, store)
    workers = world.data.workers
    world.data.end_transfers(5)
    assert not workers[0].is_alive()
    world.close()
    assert wire.done == ["connect", "interrupt", "close", "release"]
    assert world.data.left_keys == ["address"]


def test_after_success_nothing_stays_in_the_store(wire: FakeWire, store: Store) -> None:
    """A wire that nobody interrupted is closed and left when the world is closed."""
    world = blocked(wire, store)
    wire.broken.set()
    world.data.workers[0].join()
    world.close()
    assert wire.done == ["connect", "close", "leave", "release"]


def test_what_is_in_use_is_not_given_back(wire: FakeWire, store: Store) -> None:
    """A worker that can't be ended is waited for in vain for a while; its wire and memory stay until it has
    ended.
    """
    wire.ends_exchanges = False
    world = blocked(wire, store)
    begun = time.monotonic()
    world.data.end_transfers(0.1)
    assert 0.1 <= time.monotonic() - begun < 2
    world.close()
    assert wire.done == ["connect", "interrupt"]
    wire.broken.set()
    deadline = time.monotonic() + 5
    while len(wire.done) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert wire.done == ["connect", "interrupt", "close", "release"]


def test_transfers_of_a_world_have_names_of_their_own(store: Store) -> None:
    """Groups of one export never meet keys of an earlier one, and ranks that had no group agree on them."""
    worlds = [World(0, 1, SharedKeys(store), stall_seconds=20) for _ in range(2)]
    names = [[world.data.begin() for _ in range(3)] for world in worlds]
    assert names[0] == names[1]
    assert len(set(names[0])) == 3
