"""What each rank measures of an export: how long, how much memory, what it sent, when it did what."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pp_export.core.timeline import SPANS_SHOWN, RankTimeline, shown_ranks
from pp_export.process.own_memory import peak_anonymous_bytes

if TYPE_CHECKING:
    from pp_export.distributed.world import World
    from pp_export.process.recorder import Recorder


class Clock:
    """Seconds that each phase took."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        """Everything since the last lap was `name`."""
        now = time.monotonic()
        self.laps[name], self._last = round(now - self._last, 3), now


@dataclass(frozen=True)
class Measured:
    """What a rank measured: the peak of its anonymous memory, the bytes that it sent to each other rank,
    the SHA-256 of those files of several ranges that it re-read, and what it did when, if it is one of
    those whose timeline is kept.
    """

    peak_anonymous_bytes: int
    sent: Mapping[int, int]
    sha256_of: Mapping[str, str]
    timeline: RankTimeline | None = None

    @classmethod
    def of(
        cls, world: World, recorder: Recorder, sent: Mapping[int, int], sha256_of: Mapping[str, str]
    ) -> Measured:
        """What this rank measured until now."""
        is_shown = world.rank in shown_ranks(world.size)
        timeline = recorder.timeline(world.rank).coarse(SPANS_SHOWN) if is_shown else None
        return cls(peak_anonymous_bytes(), sent, sha256_of, timeline)

    def to_bytes(self) -> bytes:
        timeline = None if self.timeline is None else self.timeline.to_json()
        value = [self.peak_anonymous_bytes, list(self.sent.items()), dict(self.sha256_of), timeline]
        return json.dumps(value).encode()

    @classmethod
    def from_bytes(cls, image: bytes) -> Measured:
        """What another rank measured."""
        peak, sent, sha256_of, timeline = json.loads(image)
        found = None if timeline is None else RankTimeline.from_json(timeline)
        return cls(peak, dict(sent), sha256_of, found)
