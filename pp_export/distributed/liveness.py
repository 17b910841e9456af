"""Who is alive and who gets on: what bounds every wait for another rank."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from pp_export.core.errors import PeerError

_BEAT_SECONDS = 1.0


class Heartbeat:
    """Rank 0's sign of life: a thread posts a new number every second, whatever the main thread does.

    Rank 0 reads, merges and publishes alone, while the others only wait for it.
    """

    def __init__(self, post: Callable[[int], None]) -> None:
        self._post, self._stop = post, threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="pulse")
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
                self._post(number)
        except PeerError:
            """The store is gone; the main thread will find that out for itself."""


class Watched(Protocol):
    """What the watch needs to know of a world."""

    rank: int
    size: int

    def has_arrived(self, rank: int, step: str) -> bool: ...

    def pulse(self) -> bytes: ...

    def progress_of(self, ranks: Iterable[int]) -> dict[int, dict[str, Any]]: ...


class Watchdog:
    """The watch of one wait. Rank 0 watches all ranks, the others watch rank 0.

    A rank whose main thread has posted nothing for `seconds` is stopped, and so is rank 0 without a pulse.
    When all still post but no counter of any rank moves for as long, something they wait for hangs.
    """

    def __init__(self, world: Watched, seconds: float) -> None:
        self._world, self._seconds = world, seconds
        self._looked = time.monotonic()
        self._changed: dict[object, tuple[object, float]] = {}

    def look(self, ranks: Iterable[int], step: str) -> None:
        """Raise PeerError if the wait for `ranks`, less those that arrived at `step`, has become hopeless."""
        now = time.monotonic()
        if self._world.size == 1 or now - self._looked < min(5.0, self._seconds / 4):
            return
        self._looked = now
        if self._world.rank == 0:
            self._look_at(ranks, step, now)
        elif self._age("pulse", self._world.pulse(), now) > self._seconds:
            raise self._stalled([0], [])

    def _look_at(self, ranks: Iterable[int], step: str, now: float) -> None:
        missing = [rank for rank in ranks if not self._world.has_arrived(rank, step)]
        progress = self._world.progress_of(missing)
        stopped = [r for r in missing if r != 0 and self._age(r, progress.get(r), now) > self._seconds]
        counters = [{**progress.get(rank, {}), "beat": 0} for rank in missing]
        if not stopped and missing and self._age("all", (missing, counters), now) > self._seconds:
            stopped = missing
        if stopped:
            doing = ((rank, progress.get(rank, {}).get("doing") or {}) for rank in stopped)
            texts = [f"rank {rank} was {text}" for rank, texts in doing for text in texts.values()]
            raise self._stalled(stopped, texts)

    def _stalled(self, ranks: list[int], findings: list[str]) -> PeerError:
        return PeerError(
            f"no progress for {self._seconds:.0f} s",
            where={"rank": ", ".join(map(str, ranks))},
            findings=findings,
            advice="is that rank's process stopped, or its filesystem hanging? (see --stall-seconds)",
        )

    def _age(self, key: object, value: object, now: float) -> float:
        """Seconds since the value under `key` last changed."""
        if key not in self._changed or self._changed[key][0] != value:
            self._changed[key] = (value, now)
        return now - self._changed[key][1]
