"""How the ranks of a block come to a store of their own, which the first of them serves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from pp_export.core.errors import PeerError
from pp_export.distributed.store import Member, Store
from pp_export.distributed.tree import Seat

_SERVED_ON: list[Store] = []


class Connect(Protocol):
    """Connects with the store at an address; `whose` it is, and what to do `meanwhile`, as in SharedKeys."""

    def __call__(self, address: str, *, whose: str, meanwhile: Callable[[], None]) -> Store: ...


@dataclass(frozen=True)
class Blocks:
    """Ranks in blocks of `size`. `serve` makes a store, and gives the address at which `connect` finds it."""

    size: int
    serve: Callable[[], tuple[Store, str]]
    connect: Connect


class BlockStores:
    """The stores of blocks as a rank sees them: that of the first block is the world's, `main`; each other
    one is served by the first rank of its block. `check` raises when another rank has failed.
    """

    def __init__(self, seat: Seat, main: Member, blocks: Blocks | None, check: Callable[[], None]) -> None:
        self._seat, self._main, self._blocks, self._check = seat, main, blocks, check
        self._opened: dict[int, Store] = {0: main.store}

    def serve(self, values: Mapping[str, bytes]) -> Store:
        """Make the store of this rank's block, with `values` in it; called on its first rank, unless that is
        rank 0.
        """
        assert self._blocks is not None
        store, address = self._blocks.serve()
        store.set_many(values)
        self._opened[self._seat.block] = store
        self._main.store.set(_address(self._seat.block), address.encode())
        return store

    def of_rank(self, rank: int, *, seconds: float) -> Store:
        """The store of a rank's block."""
        return self.of(rank // self._seat.block_size, seconds)

    def of(self, block: int, seconds: float) -> Store:
        """The store of a block, connected; raises PeerError where it isn't served within `seconds`."""
        if block not in self._opened:
            assert self._blocks is not None
            first, key = self._seat.ranks_of(block)[0], _address(block)

            def is_served() -> bool:
                self._check()
                return self._main.store.check(key)

            if not self._main.poll(is_served, seconds):
                raise PeerError(f"rank {first} has not come within {seconds:.0f} s", where={"rank": first})
            address = self._main.store.get(key).decode()
            whose = f"the store of rank {first} at {address}"
            self._opened[block] = self._blocks.connect(address, whose=whose, meanwhile=self._check)
        return self._opened[block]

    def close(self, *, have_all_left: bool) -> None:
        """Close all but the main one. A store that a rank of the block may still need lives as long as the
        process.
        """
        for block, store in self._opened.items():
            if block == self._seat.block and self._seat.is_first and not have_all_left:
                _SERVED_ON.append(store)
            elif block != 0:
                store.close()


def _address(block: int) -> str:
    return f"store of block/{block}"
