"""Claims of `pp_export.distributed.data`: what blocks a worker can be ended, and a carrier in use stays."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import pytest
import torch
from torch.distributed import Store  # type: ignore[attr-defined]

from pp_export.distributed.process_groups import SharedKeys
from pp_export.distributed.world import World


@dataclass
class FakeCarrier:
    """Notes what is done with it; `receive` blocks until it is interrupted."""

    done: list[str] = field(default_factory=list)
    broken: threading.Event = field(default_factory=threading.Event)
    ends_transfers: bool = True

    def send(self, message: torch.Tensor, to: int, tag: int) -> None:
        self.done.append(f"send {len(message)} to {to}")

    def receive(self, into: Mapping[int, torch.Tensor], tag: int) -> None:
        self.broken.wait(10)

    def interrupt(self) -> None:
        self.done.append("interrupt")
        if self.ends_transfers:
            self.broken.set()

    def close(self) -> None:
        self.done.append("close")


@pytest.fixture
def carrier() -> Iterator[FakeCarrier]:
    carrier = FakeCarrier()
    yield carrier
    carrier.broken.set()


def blocked(carrier: FakeCarrier, store: Store) -> World:
    """A world with one worker that waits for a message."""
    world = World(0, 1, SharedKeys(store), lambda: carrier, stall_seconds=20)
    world.data.connect()
    into = {1: torch.empty(1, dtype=torch.uint8)}
    world.data.workers = [threading.Thread(target=lambda: world.data.receive(into, 0))]
    world.data.workers[0].start()
    return world


def test_workers_have_ended_when_transfers_are_ended(carrier: FakeCarrier, store: Store) -> None:
    """`end_transfers` interrupts the carrier and returns when workers are done; then `close` closes it."""
    world = blocked(carrier, store)
    world.data.end_transfers(5)
    assert not world.data.workers[0].is_alive()
    world.close()
    assert carrier.done == ["interrupt", "close"]


def test_a_carrier_in_use_is_not_closed(carrier: FakeCarrier, store: Store) -> None:
    """A worker that can't be ended is waited for in vain for a while, and its carrier stays."""
    carrier.ends_transfers = False
    world = blocked(carrier, store)
    begun = time.monotonic()
    world.data.end_transfers(0.1)
    assert 0.1 <= time.monotonic() - begun < 2
    world.close()
    assert carrier.done == ["interrupt"]


def test_a_carrier_is_made_once_and_when_all_are_there(store: Store) -> None:
    """No rank makes its carrier before every rank connects, and connecting again makes no other."""
    connecting: list[int] = []
    made: list[list[int]] = []

    def act(rank: int) -> None:
        def make() -> FakeCarrier:
            made.append(sorted(connecting))
            return FakeCarrier()

        world = World(rank, 2, SharedKeys(store), make, stall_seconds=20)
        time.sleep(0.2 * rank)
        connecting.append(rank)
        world.data.connect()
        world.data.connect()
        world.close()

    threads = [threading.Thread(target=act, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert made == [[0, 1], [0, 1]]
