"""Rank 0's sign of life."""

from __future__ import annotations

import threading

from pp_export.core.errors import PeerError
from pp_export.distributed.store import Store

_BEAT_SECONDS = 1.0
_HEARTBEAT = "heartbeat"


class Heartbeat:
    """Rank 0's sign of life: a thread posts a new number every second, whatever the main thread does.

    Rank 0 reads, merges and publishes alone, while the others only wait for it.
    """

    def __init__(self, store: Store) -> None:
        self._store, self._stop = store, threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="heartbeat")
        self._thread.start()

    def stop(self) -> None:
        """End the thread; it may be waiting for the store for a while."""
        self._stop.set()
        self._thread.join(5.0)

    def _beat(self) -> None:
        number = 0
        try:
            while not self._stop.wait(_BEAT_SECONDS):
                number += 1
                self._store.set(_HEARTBEAT, b"%d" % number)
        except PeerError:
            """The store is gone; the main thread will find that out for itself."""


def last_beat(store: Store) -> bytes:
    """What rank 0 posted last."""
    return store.get(_HEARTBEAT) if store.check(_HEARTBEAT) else b""
