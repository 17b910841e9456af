"""Who is alive and who gets on: what bounds every wait for another rank."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pp_export.core.errors import PeerError
from pp_export.distributed.store import Member

_BEAT_SECONDS = 1.0
_HEARTBEAT = "heartbeat"


class Heartbeat:
    """Rank 0's sign of life: a thread posts a new number every second, whatever the main thread does.

    Rank 0 reads, merges and publishes alone, while the others only wait for it.
    """

    def __init__(self, post: Callable[[int], None]) -> None:
        self._post, self._stop = post, threading.Event()
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
                self._post(number)
        except PeerError:
            """The store is gone; the main thread will find that out for itself."""


class Liveness:
    """What this rank posts of itself, and what it sees of the others; main thread only."""

    def __init__(self, member: Member, stall_seconds: float) -> None:
        self.rank, self.size, self.stall_seconds = member.rank, member.size, stall_seconds
        self.counters: Callable[[], Mapping[str, Any]] = dict
        """What this rank has done so far; numbers by name, and under "doing" what each worker is at."""
        self._member, self._store = member, member.store
        self._posted, self._num_posts = 0.0, 0
        # Not a method of this object: the two would keep each other alive where Python's collector is off.
        store, is_watched = member.store, member.rank == 0 and member.size > 1
        self._heartbeat = Heartbeat(lambda n: store.set(_HEARTBEAT, b"%d" % n)) if is_watched else None

    def post_progress(self) -> None:
        """Let rank 0 see the counters of this rank; cheap enough to be called in every poll."""
        now = time.monotonic()
        if now - self._posted >= max(0.2, self._member.poll_seconds):
            self._posted, self._num_posts = now, self._num_posts + 1
            value = json.dumps({"beat": self._num_posts, **self.counters()}).encode()
            self._store.set(f"progress/{self.rank}", value)

    def progress_of(self, ranks: Iterable[int]) -> dict[int, dict[str, Any]]:
        """The last progress that the given ranks posted."""
        keys = {rank: f"progress/{rank}" for rank in ranks}
        return {
            rank: json.loads(self._store.get(key)) for rank, key in keys.items() if self._store.check(key)
        }

    def last_beat(self) -> bytes:
        """What rank 0 posted last as a sign of life."""
        return self._store.get(_HEARTBEAT) if self._store.check(_HEARTBEAT) else b""

    def stop(self) -> None:
        """End this rank's sign of life."""
        if self._heartbeat is not None:
            self._heartbeat.stop()

    def remove_keys(self) -> None:
        """Remove what all ranks posted; called on rank 0, when all have stopped."""
        for key in (_HEARTBEAT, *(f"progress/{rank}" for rank in range(self.size))):
            self._store.delete(key)


class Watchdog:
    """The watch of one wait. Rank 0 watches all ranks, the others watch rank 0.

    A rank whose main thread has posted nothing for the stall time is stopped, and so is rank 0 without a
    heartbeat. When all still post but no counter of any rank moves for as long, something that they wait for
    hangs.
    """

    def __init__(self, liveness: Liveness) -> None:
        self._liveness, self._seconds = liveness, liveness.stall_seconds
        self._looked = time.monotonic()
        self._changed: dict[object, tuple[object, float]] = {}

    def look(self, awaited: Callable[[], list[int]]) -> None:
        """Raise PeerError if the wait for the ranks that are still `awaited` has become hopeless."""
        now = time.monotonic()
        if self._liveness.size == 1 or now - self._looked < min(5.0, self._seconds / 4):
            return
        self._looked = now
        if self._liveness.rank == 0:
            self._look_at(awaited(), now)
        elif self._age("heartbeat", self._liveness.last_beat(), now) > self._seconds:
            raise self._stalled([0], [])

    def _look_at(self, awaited: list[int], now: float) -> None:
        progress = self._liveness.progress_of(awaited)
        stopped = [r for r in awaited if r != 0 and self._age(r, progress.get(r), now) > self._seconds]
        counters = [{**progress.get(rank, {}), "beat": 0} for rank in awaited]
        if not stopped and awaited and self._age("all", (awaited, counters), now) > self._seconds:
            stopped = awaited
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
