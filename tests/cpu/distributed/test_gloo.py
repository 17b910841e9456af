"""Claims of `pp_export.distributed.gloo`: ranks are connected with those that the plan connects them with."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYetError
from pathlib import Path

import pytest
from torch.distributed import HashStore, PrefixStore, Store  # type: ignore[attr-defined]

from pp_export.core.errors import PeerError
from pp_export.distributed import gloo
from pp_export.distributed.gloo import GlooWire
from pp_export.distributed.membership import Membership
from pp_export.distributed.wire import Group, Message, Place

RING = 12


def wire_of(store: Store, rank: int, size: int, peers: tuple[int, ...]) -> GlooWire:
    """A rank's wire in a group of `size`, connected by a thread of its own as in an export."""
    wire = GlooWire(Membership(store, rank, Group(tuple(range(size)), "ring", peers=peers)))
    wire.connect(lambda: None)
    return wire


def ring(store: Store, size: int) -> list[GlooWire]:
    """Ranks that have a link with the next and the last one only."""

    def of_rank(rank: int) -> GlooWire:
        return wire_of(store, rank, size, tuple(sorted({(rank - 1) % size, (rank + 1) % size})))

    with ThreadPoolExecutor(size) as ranks:
        return list(ranks.map(of_rank, range(size)))


def num_sockets() -> int:
    links = (Path("/proc/self/fd") / name for name in os.listdir("/proc/self/fd"))
    return sum(os.readlink(link).startswith("socket:") for link in links if link.is_symlink())


def test_values_arrive_over_links_of_the_plan(store: Store) -> None:
    """In a ring, each rank gets what the last one sent, in order, though most ranks are not connected."""
    wires = ring(store, RING)

    def act(rank: int) -> list[int]:
        into = memoryview(bytearray(3))
        sent = [Message((rank + 1) % RING, memoryview(bytearray(values))) for values in ([rank], [rank, 7])]
        last = (rank - 1) % RING
        wires[rank].exchange(sent, [Place(last, 0, 1), Place(last, 1, 3)], into)()
        return into.tolist()

    with ThreadPoolExecutor(RING) as ranks:
        found = list(ranks.map(act, range(RING)))
    assert found == [[(rank - 1) % RING, (rank - 1) % RING, 7] for rank in range(RING)]


def test_a_rank_has_a_socket_for_each_link() -> None:
    """Sockets grow with the links of a rank, two in a ring, and not with the size of its group."""
    per_rank = []
    for size in (6, 18):
        before = num_sockets()
        wires = ring(HashStore(), size)
        per_rank.append((num_sockets() - before) / len(wires))
        del wires
    assert per_rank == [3, 3], "a listener and two links"


def test_an_interrupt_ends_every_link(store: Store) -> None:
    """A rank that is blocked in receives from two peers raises when its wire is interrupted."""
    wires = ring(store, 3)
    with ThreadPoolExecutor(1) as worker:
        places = [Place(1, 0, 5), Place(2, 5, 10)]
        blocked = worker.submit(wires[0].exchange, [], places, memoryview(bytearray(10)))
        with pytest.raises(NotYetError):
            blocked.result(0.3)
        wires[0].interrupt()
        with pytest.raises(PeerError, match="the connection to rank 1 broke"):
            blocked.result(5)


def test_addresses_stay_until_the_wire_is_left(store: Store) -> None:
    """A member that closes early may still be looked for by one that connects: its keys, all of which it can
    name, go when it leaves.
    """
    wires = ring(PrefixStore("job", store), 4)
    there = store.num_keys()
    for wire in wires:
        wire.close()
    told = [f"job/{key}" for wire in wires for key in GlooWire.keys(wire)]
    assert store.num_keys() == there == len(told)
    assert store.check(told)
    for wire in wires:
        wire.leave()
    assert store.num_keys() == 0


def test_interfaces_can_be_named(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """GLOO_SOCKET_IFNAME decides, as for any group of torch: an interface that isn't there is an error that
    names the variable.
    """
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    assert len(ring(store, 2)) == 2
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "no-such-interface")
    with pytest.raises(PeerError) as caught:
        wire_of(store, 0, 2, (1,))
    assert "GLOO_SOCKET_IFNAME" in str(caught.value.advice)


def test_a_peer_that_never_comes_is_named(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who was at the door and can't be connected with then is named, and not waited for for ever."""
    store.add("ring/here", 2)
    monkeypatch.setattr(gloo, "_MEETING", gloo._AT_ONCE * 200)
    with pytest.raises(PeerError, match="rank 0 could not connect with rank 2"):
        wire_of(store, 0, 3, (2,))
