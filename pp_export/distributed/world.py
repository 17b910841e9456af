"""The ranks of an export, each role of theirs in an object of its own."""

from __future__ import annotations

import time
from contextlib import suppress

from pp_export.core.errors import PeerError
from pp_export.distributed.abort import Abort
from pp_export.distributed.announcements import Announcements
from pp_export.distributed.control import Control
from pp_export.distributed.data import Connect, Data
from pp_export.distributed.liveness import Liveness
from pp_export.distributed.store import Member, Store

_RUN = "run"


class World:
    """The ranks of this export; made and closed by all. One rank alone needs no launcher, and no `connect`.

    `run_id` is the same on all ranks and differs from run to run. Raises PeerError where rank 0 has not come
    within `stall_seconds`; after as long without progress, waits for other ranks raise as well.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        store: Store,
        connect: Connect | None = None,
        *,
        stall_seconds: float,
    ) -> None:
        member = Member(rank, size, store)
        self.rank, self.size = rank, size
        self.run_id = _run_id(member, stall_seconds)
        self.liveness = Liveness(member, stall_seconds)
        self.abort = Abort(member, self.liveness)
        self.control = Control(member, self.liveness, self.abort)
        self.data = Data(connect)
        self.announcements = Announcements(member)
        self._store = store

    def close(self, seconds: float = 10.0) -> None:
        """Leave the group and the store as they were before; called by all ranks, after success or failure.

        Rank 0 removes the keys, if all ranks have closed within `seconds`.
        """
        self.liveness.stop()
        with suppress(PeerError):
            if self.control.leave(seconds):
                for role in (self.liveness, self.abort, self.control):
                    role.remove_keys()
                self._store.delete(_RUN)
        self.data.close_at_last()


def _run_id(member: Member, stall_seconds: float) -> str:
    """What rank 0 calls this run; in a training job it may come minutes later."""
    if member.rank == 0:
        member.store.set(_RUN, f"{time.time_ns():x}".encode())
    if not member.poll(lambda: member.store.check(_RUN), stall_seconds):
        raise PeerError(f"rank 0 has not come within {stall_seconds:.0f} s", where={"rank": member.rank})
    return member.store.get(_RUN).decode()
