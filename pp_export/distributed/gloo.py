"""A wire over Gloo, for host memory: a connection for every link of the plan, and no other."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch
from torch.distributed import PrefixStore, ProcessGroupGloo  # type: ignore[attr-defined]

from pp_export.core.errors import PeerError
from pp_export.distributed.broken import at_peer, first_line
from pp_export.distributed.membership import Membership
from pp_export.distributed.wire import Message, Place, as_tensor

# Waiting is bounded by lack of progress (see Watchdog), so the clock of a transfer only has to be far away.
_EVER = timedelta(days=7)
_MEETING = timedelta(seconds=60)
_AT_ONCE = timedelta(milliseconds=1)
_TAG, _NO_TAG = 0, 1
_OPTIONS: Any = ProcessGroupGloo._Options  # type: ignore[attr-defined]


class GlooWire:
    """One of torch's groups for each peer of this rank, over one device: Gloo connects all members of a group
    with each other, and its lazy connections lose messages between ranks that connect at the same time.

    torch's registry doesn't know these groups: the job's own, and their names, stay as they are.
    """

    def __init__(self, member: Membership) -> None:
        self._member = member
        self._links: dict[int, Any] = {}

    def connect(self, check: Callable[[], None]) -> None:
        """One peer after the other, in an order of links that is the same on all ranks."""
        self._member.meet(check)
        rank, peer = self._member.rank, None
        try:
            options = _options()
            for peer in sorted(self._member.group.peers_of(rank), key=lambda peer: sorted((peer, rank))):
                store = PrefixStore(_name(rank, peer), self._member.store)
                self._links[peer] = ProcessGroupGloo(store, _number(rank, peer), 2, options)
        except (RuntimeError, ValueError) as error:
            whom = "anyone" if peer is None else f"rank {peer}"
            raise PeerError(
                f"rank {rank} could not connect with {whom}: {first_line(error)}",
                where={"rank": rank},
                advice="can all nodes reach each other? GLOO_SOCKET_IFNAME names the interface to use",
            ) from error

    def exchange(
        self, sent: Sequence[Message], places: Sequence[Place], into: memoryview
    ) -> Callable[[], None]:
        works, memory = [], as_tensor(into)
        for peer, begin, end in places:
            with at_peer(peer):
                number = _number(peer, self._member.rank)
                works.append((peer, self._links[peer].recv([memory[begin:end]], number, _TAG)))
        for peer, values in sent:
            with at_peer(peer):
                number = _number(peer, self._member.rank)
                works.append((peer, self._links[peer].send([as_tensor(values)], number, _TAG)))
        for peer, work in works:
            with at_peer(peer):
                work.wait(_EVER)
        return lambda: None

    def finish(self) -> None:
        """A round over Gloo is over when `exchange` returns."""

    def interrupt(self) -> None:
        """Gloo closes the connections of a group when one operation runs out of time; nothing else ends
        them.
        """
        for peer, link in list(self._links.items()):
            with suppress(RuntimeError):
                number = _number(peer, self._member.rank)
                link.recv([torch.empty(1, dtype=torch.uint8)], number, _NO_TAG).wait(_AT_ONCE)

    def close(self) -> None:
        """Sockets end with the last reference to their link."""
        self._links.clear()

    def keys(self) -> list[str]:
        rank = self._member.rank
        peers = self._member.group.peers_of(rank)
        return self._member.keys(*(f"{_name(rank, peer)}/0/{_number(rank, peer)}" for peer in peers))

    def leave(self) -> None:
        self._member.leave(self.keys())


def _options() -> Any:
    """What all links of this rank have in common: the interfaces, and no threads, which a send or a receive
    does without.
    """
    options = _OPTIONS()
    interfaces = [name for name in os.environ.get("GLOO_SOCKET_IFNAME", "").split(",") if name]
    devices = [ProcessGroupGloo.create_device(interface=name) for name in interfaces]
    options._devices = devices or [ProcessGroupGloo.create_default_device()]
    options._timeout, options._threads = _MEETING, 0
    return options


def _name(rank: int, peer: int) -> str:
    """What the keys of a link begin with."""
    return f"{min(rank, peer)}-{max(rank, peer)}"


def _number(rank: int, peer: int) -> int:
    """The number of `rank` in the group of it and its peer."""
    return int(rank > peer)
