"""The ranks of an export, each role of theirs in an object of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from pp_export.core.errors import ExportError, PeerError
from pp_export.distributed import abort
from pp_export.distributed.abort import Abort
from pp_export.distributed.announcements import Announcements
from pp_export.distributed.blocks import Blocks, BlockStores
from pp_export.distributed.control import Control
from pp_export.distributed.data import Data, MakeWire
from pp_export.distributed.liveness import Liveness
from pp_export.distributed.store import Member, Store
from pp_export.distributed.tree import Seat

OnClose = Callable[[list[str], bool], None]
"""Is told which keys of this rank may be left, and, on rank 0, whether all ranks have left."""

_RUN = "run"


@dataclass(frozen=True)
class Missed:
    """Why an export doesn't begin, and the ranks that have not come to it."""

    error: ExportError
    absent: Collection[int]


class World:
    """The ranks of this export; made and closed by all. One rank alone needs no launcher, and no
    `make_wire`.

    `store` is what all ranks see. With `blocks`, those of each block but the first share a store of their
    own besides. `run_id` is the same on all ranks and differs from run to run. Raises PeerError where rank
    0 has not come within `stall_seconds`; after as long without progress, waits for other ranks raise as
    well. Where ranks have `missed` its beginning, those that are here only end together.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        store: Store,
        make_wire: MakeWire | None = None,
        *,
        blocks: Blocks | None = None,
        stall_seconds: float,
        missed: Missed | None = None,
        on_close: OnClose = lambda *_: None,
    ) -> None:
        member = Member(rank, size, store)
        self._missed, self._on_close = missed, on_close
        if missed is not None:
            blocks = None  # a few words over the world's store, and all end
        self._seat = seat = Seat(rank, size, size if blocks is None else blocks.size)
        self.rank, self.size, self._store = rank, size, store
        self.abort = Abort(member)
        self.abort.absent = () if missed is None else missed.absent
        # Nothing here refers back to its owner, so a closed world ends where Python's collector is off.
        self._stores = BlockStores(seat, member, blocks, partial(abort.check, store))
        try:
            self.run_id, block = self._come_in(member, stall_seconds)
        except PeerError as error:
            self.abort.fail(error)
            raise
        self.liveness = Liveness(seat, store, block, stall_seconds)
        self.control = Control(seat, store, block, self.liveness, self.abort)
        stores = partial(self._stores.of_rank, seconds=stall_seconds) if size > 1 else None
        self.announcements = Announcements(rank, stores)
        self.data = Data(make_wire)

    def check_start(self) -> None:
        """Raise what kept the ranks from beginning together, if anything did; so it ends all, as any other
        failure does.
        """
        if self._missed is not None:
            raise self._missed.error

    def close(self, seconds: float = 10.0) -> None:
        """Leave the group and the store as they were before; called by all ranks, after success or
        failure.

        Rank 0 removes the keys, if all ranks have closed within `seconds`.
        """
        self.liveness.stop()
        left = None
        with suppress(PeerError):
            keys = [*self._store.own_keys(), *self.data.left_keys]
            left = self.control.leave(keys, seconds, self.abort.absent)
            for key in left or () if self.rank == 0 else ():
                self._store.delete(key)
            self._on_close([*self._store.own_keys(), *self.data.left_keys], left is not None)
        self._stores.close(have_all_left=left is not None)
        self._store.close()
        self.data.close_at_last()

    def _come_in(self, main: Member, seconds: float) -> tuple[str, Store]:
        """What rank 0 calls this run, and the store of this rank's block; rank 0, and the first of the
        block, may come minutes later in a training job.
        """
        seat = self._seat
        if self._missed is not None:
            return "missed", main.store
        if self.rank == 0:
            main.store.set(_RUN, f"{time.time_ns():x}".encode())
        if seat.block != 0 and not seat.is_first:
            block = self._stores.of(seat.block, seconds)
            self.abort.listen_in(block, is_first=False)
            return block.get(_RUN).decode(), block
        if not main.poll(lambda: main.store.check(_RUN), seconds):
            raise PeerError(f"rank 0 has not come within {seconds:.0f} s", where={"rank": self.rank})
        run_id = main.store.get(_RUN)
        if seat.block == 0:
            return run_id.decode(), main.store
        block = self._stores.serve({_RUN: run_id})
        self.abort.listen_in(block, is_first=True)
        return run_id.decode(), block
