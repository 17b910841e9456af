"""A wire over Gloo, for host memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch
from torch.distributed import ProcessGroupGloo

from pp_export.core.errors import PeerError
from pp_export.distributed.broken import at_peer, first_line
from pp_export.distributed.membership import Membership
from pp_export.distributed.wire import Message, Place, as_tensor

# Waiting is bounded by lack of progress (see Watchdog), so the clock of a transfer only has to be far away.
_EVER = timedelta(days=7)
_MEETING = timedelta(seconds=60)
_AT_ONCE = timedelta(milliseconds=1)
_TAG, _NO_TAG = 0, 1


class GlooWire:
    """A group that torch's registry doesn't know: the job's own groups, and their names, stay as they are."""

    def __init__(self, member: Membership) -> None:
        self._member = member
        self._group: Any = None

    def connect(self) -> None:
        member = self._member
        try:
            self._group = ProcessGroupGloo(member.store, member.number, member.size, _MEETING)
        except (RuntimeError, ValueError) as error:
            raise PeerError(
                f"the ranks of a group could not connect: {first_line(error)}",
                where={"rank": member.rank},
                advice="can all nodes reach each other? GLOO_SOCKET_IFNAME names the interface to use",
            ) from error

    def exchange(
        self, sent: Sequence[Message], places: Sequence[Place], into: memoryview
    ) -> Callable[[], None]:
        works, memory = [], as_tensor(into)
        for place in places:
            values, peer = [memory[place.begin : place.end]], self._member.number_of[place.peer]
            with at_peer(place.peer):
                works.append((place.peer, self._group.recv(values, peer, _TAG)))
        for message in sent:
            with at_peer(message.peer):
                peer = self._member.number_of[message.peer]
                works.append((message.peer, self._group.send([as_tensor(message.values)], peer, _TAG)))
        for number, work in works:
            with at_peer(number):
                work.wait(_EVER)
        return lambda: None

    def finish(self) -> None:
        """A round over Gloo is over when `exchange` returns."""

    def interrupt(self) -> None:
        """Gloo closes all connections of a group when one operation runs out of time; nothing else ends
        them.
        """
        if self._group is None:
            return
        with suppress(RuntimeError):
            peer = (self._member.number + 1) % self._member.size
            self._group.recv([torch.empty(1, dtype=torch.uint8)], peer, _NO_TAG).wait(_AT_ONCE)

    def close(self) -> None:
        """Remove this rank's address from the store; sockets end with the last reference to the wire."""
        self._member.leave(f"0/{self._member.number}")
