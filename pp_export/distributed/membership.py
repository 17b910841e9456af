"""A rank as a member of a group, before and after it has a wire."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import suppress

from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]

from pp_export.core.errors import PeerError
from pp_export.distributed.broken import first_line
from pp_export.distributed.wire import Group

_POLL_SECONDS = 0.005
_HERE, _DOOR = "here", "door"
_OPEN, _SHUT = b"open", b"shut"


class Membership:
    """What rank `rank` knows of its group: the number of each member in it, its own, and a store for it.

    Used by one thread, which has the connection of `store` to itself.
    """

    def __init__(self, store: Store, rank: int, group: Group) -> None:
        self.group, self.rank = group, rank
        self._store, self.store = store, PrefixStore(group.name, store)
        self.number_of = {member: number for number, member in enumerate(group.ranks)}
        self.number, self.size = self.number_of[rank], len(group.ranks)

    def meet(self, check: Callable[[], None]) -> None:
        """Return when all members are here; until then `check` is called now and then, and may raise.

        Making a group blocks, and nothing ends that when a member never comes. So nobody goes in before all
        are at the door, and then all do: who has to leave shuts the door, unless it is open already.
        """
        try:
            if self.store.add(_HERE, 1) == self.size:
                self._turn(_OPEN)
            while not self.store.check([_DOOR]):
                try:
                    check()
                except BaseException:
                    if self._turn(_SHUT) == _SHUT:
                        raise
                    return
                time.sleep(_POLL_SECONDS)
            if self.store.get(_DOOR) == _SHUT:
                raise PeerError(
                    "a rank of the group stopped before it was connected", where={"rank": self.rank}
                )
        except RuntimeError as error:
            raise PeerError("the launcher's store does not answer", got=first_line(error)) from error

    def _turn(self, how: bytes) -> bytes:
        """Open or shut the door, if nobody did; how it is."""
        return bytes(self.store.compare_set(_DOOR, "", how.decode()))

    def keys(self, *of_wire: str) -> list[str]:
        """The keys of the run's store that this member answers for: the group's, and those of its wire."""
        own = (*((_HERE, _DOOR) if self.number == 0 else ()), *of_wire)
        return [f"{self.group.name}/{key}" for key in own]

    def leave(self, keys: Iterable[str]) -> None:
        """Remove keys of the run's store."""
        with suppress(RuntimeError):
            for key in keys:
                self._store.delete_key(key)
