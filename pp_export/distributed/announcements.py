"""What ranks tell each other while they work: that a file is there."""

from __future__ import annotations

import threading
from collections.abc import Callable

from pp_export.distributed.store import Store


class Announcements:
    """Files that ranks have committed, posted by who wrote them and asked for by who verifies them.

    A post lies in the store of the writer's block, where those ask who know the writer; ranks of one block
    share a store, so a verifier near the writer costs no connection. Any thread may call; each call is one
    request. `store_of` gives the store of a rank's block; there is none in a world of one. Raises PeerError
    where that store is gone or another rank has failed.
    """

    def __init__(self, rank: int, store_of: Callable[[int], Store] | None) -> None:
        self._rank, self._store_of = rank, store_of
        self._lock = threading.Lock()
        self._own: set[str] = set()

    def post(self, file: str) -> None:
        """This rank has committed `file`; called by it, once."""
        self._own.add(file)
        if self._store_of is not None:
            self._store(self._rank).set(_key(file), b"")

    def has(self, file: str, writer: int) -> bool:
        """Whether rank `writer` has posted `file`."""
        if writer == self._rank:
            return file in self._own
        return self._store(writer).check(_key(file))

    def _store(self, rank: int) -> Store:
        assert self._store_of is not None
        with self._lock:  # several workers may ask for the first time
            return self._store_of(rank)


def _key(file: str) -> str:
    return f"committed/{file}"
