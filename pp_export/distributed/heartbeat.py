"""Rank 0's sign of life."""

from __future__ import annotations

import threading
from pathlib import Path

from pp_export.core.errors import PeerError
from pp_export.distributed.store import Store

_BEAT_SECONDS = 1.0
_HEARTBEAT = "heartbeat"


class Heartbeat:
    """Rank 0's sign of life: a thread posts a new number every second in which the thread that made it has
    run. That one may be long at its work, but one that is held in a single call, by a filesystem that hangs,
    gives no sign.

    Rank 0 reads, merges and publishes alone, while the others only wait for it.
    """

    def __init__(self, store: Store) -> None:
        self._store, self._stop = store, threading.Event()
        self._watched = Path(f"/proc/self/task/{threading.get_native_id()}/schedstat")
        self._thread = threading.Thread(target=self._beat, daemon=True, name="heartbeat")
        self._thread.start()

    def stop(self) -> None:
        """End the thread; it may be waiting for the store for a while."""
        self._stop.set()
        self._thread.join(5.0)

    def _beat(self) -> None:
        number, seen = 0, ""
        try:
            while not self._stop.wait(_BEAT_SECONDS):
                before, seen = seen, self._time_run()
                if seen != before or not seen:
                    number += 1
                    self._store.set(_HEARTBEAT, b"%d" % number)
        except PeerError:
            """The store is gone; the main thread will find that out for itself."""

    def _time_run(self) -> str:
        """How long the watched thread has run, as the kernel says it; nothing where it doesn't."""
        try:
            run_ns = self._watched.read_text().partition(" ")[0]
        except OSError:
            return ""
        return "" if run_ns == "0" else run_ns


def last_beat(store: Store) -> bytes:
    """What rank 0 posted last."""
    return store.get(_HEARTBEAT) if store.check(_HEARTBEAT) else b""
