"""Who is alive and who gets on: what bounds every wait for another rank."""

from __future__ import annotations

import json
import math
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pp_export.core.errors import PeerError
from pp_export.distributed.heartbeat import Heartbeat, last_beat
from pp_export.distributed.store import Store, missing
from pp_export.distributed.tree import Seat

_POST_SECONDS = 0.2


class Liveness:
    """What this rank posts of itself, and what rank 0 sees of the others; main thread only.

    Progress goes into the store of the rank's block. The first rank of a block puts what all of its ranks
    have posted into one value of the world's store, so rank 0 sees all with a request per kind of key.
    """

    def __init__(self, seat: Seat, main: Store, block: Store, stall_seconds: float) -> None:
        self.seat, self.rank, self.size, self.stall_seconds = seat, seat.rank, seat.size, stall_seconds
        self.counters: Callable[[], Mapping[str, Any]] = dict
        """What this rank has done so far; numbers by name, and under "doing" what each worker is at."""
        self.step = 0
        """The step that this rank has come to."""
        self._main, self._block = main, block
        self._posted, self._num_posts = 0.0, 0
        self._looked, self._seen = -math.inf, dict[int, dict[str, Any]]()
        self._own = _Posts(block, [_of_rank(rank) for rank in seat.members])
        self._all_posts = [self._own] if self.rank == 0 else []
        if self.rank == 0 and seat.num_blocks > 1:
            self._all_posts.append(_Posts(main, [_of_block(n) for n in range(1, seat.num_blocks)]))
        self._heartbeat = Heartbeat(main) if self.rank == 0 and self.size > 1 else None

    def post_progress(self) -> None:
        """Let rank 0 see the counters of this rank; cheap enough to be called in every poll."""
        now, pause = time.monotonic(), max(_POST_SECONDS, len(self.seat.members) / 256, self.size / 8192)
        if now - self._posted < pause:
            return
        self._posted, self._num_posts = now, self._num_posts + 1
        value = json.dumps({"beat": self._num_posts, "step": self.step, **self.counters()}).encode()
        self._block.set(_of_rank(self.rank), value)
        if self.seat.is_first and self.rank != 0:
            self._main.set(_of_block(self.seat.block), _bundle(self._own.read()))

    def progress_of(self, ranks: Iterable[int]) -> dict[int, dict[str, Any]]:
        """The last progress that the given ranks posted; on rank 0."""
        now = time.monotonic()
        if now - self._looked >= self.size / 8192:  # as often as a block's first rank posts
            self._looked, self._seen = now, self._look()
        return {rank: self._seen[rank] for rank in ranks if rank in self._seen}

    def _look(self) -> dict[int, dict[str, Any]]:
        found: dict[int, dict[str, Any]] = {}
        for posts in self._all_posts:
            for key, value in posts.read().items():
                many = _unbundle(value) if key.startswith(_of_block("")) else {key: json.loads(value)}
                found.update({int(of.rpartition("/")[2]): progress for of, progress in many.items()})
        return found

    def last_beat(self) -> bytes:
        """What rank 0 posted last as a sign of life."""
        return last_beat(self._main)

    def stop(self) -> None:
        """End this rank's sign of life."""
        if self._heartbeat is not None:
            self._heartbeat.stop()


class _Posts:
    """Keys of a store that appear one by one and stay."""

    def __init__(self, store: Store, keys: Sequence[str]) -> None:
        self._store, self._keys, self._missing = store, list(keys), list(keys)

    def read(self) -> dict[str, bytes]:
        """The values of those that are there."""
        self._missing = missing(self._store, self._missing)
        absent = set(self._missing)
        there = [key for key in self._keys if key not in absent]
        return dict(zip(there, self._store.get_many(there) if there else []))


def _of_rank(rank: int) -> str:
    return f"progress/{rank}"


def _of_block(block: int | str) -> str:
    return f"progress of block/{block}"


def _bundle(posts: Mapping[str, bytes]) -> bytes:
    """Many posts as one, unread."""
    inside = (json.dumps(key).encode() + b":" + value for key, value in posts.items())
    return zlib.compress(b"{" + b",".join(inside) + b"}", 1)


def _unbundle(image: bytes) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads(zlib.decompress(image))
    return found


class Watchdog:
    """The watch of one wait. Rank 0 watches all ranks; the first ranks of blocks, and all of its own block,
    watch rank 0.

    A rank whose main thread has posted nothing for the stall time is stopped, and so is rank 0 without a
    heartbeat. When all still post but no counter of any rank moves for as long, something that they wait for
    hangs. Where the first rank of a block is stopped, nothing is known of its others.
    """

    def __init__(self, liveness: Liveness) -> None:
        self._liveness, self._seconds = liveness, liveness.stall_seconds
        self._looked = time.monotonic()
        self._watches_rank_0 = liveness.seat.block == 0 or liveness.seat.is_first
        self._changed: dict[object, tuple[object, float]] = {}

    def look(self, awaited: Callable[[], list[int]]) -> None:
        """Raise PeerError if the wait for the ranks that are still `awaited` has become hopeless."""
        now = time.monotonic()
        if self._liveness.size == 1 or now - self._looked < min(5.0, self._seconds / 4):
            return
        self._looked = now
        if self._liveness.rank == 0:
            self._look_at(awaited(), now)
        elif self._watches_rank_0 and self._age("heartbeat", self._liveness.last_beat(), now) > self._seconds:
            raise self._stalled([0], [])

    def _look_at(self, awaited: list[int], now: float) -> None:
        progress, seat = self._liveness.progress_of(awaited), self._liveness.seat
        stopped = [r for r in awaited if r != 0 and self._age(r, progress.get(r), now) > self._seconds]
        silent_firsts = {r for r in stopped if r == seat.first_of(r)}
        stopped = [r for r in stopped if r in silent_firsts or seat.first_of(r) not in silent_firsts]
        counters = [{**progress.get(rank, {}), "beat": 0} for rank in awaited]
        if not stopped and awaited and self._age("all", (awaited, counters), now) > self._seconds:
            step = self._liveness.step
            stopped = [r for r in awaited if progress.get(r, {}).get("step", 0) < step] or awaited
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
