"""Records what the workers of this rank do, as spans of a timeline. Cheap enough for every bucket."""

from __future__ import annotations

import re
import threading
import time
from types import TracebackType

from pp_export.core.timeline import Lane, RankTimeline, Span, Word, coarse

MAX_SPANS = 2048
"""Spans of one lane; above that, they are merged to half as many. A lane stays under 1 MB."""

_NUMBER = re.compile(r"[-_ ]*\d*( \(.*\))?$")


class Recorder:
    """Spans since it was made, a lane for each thread that lives.

    `with recorder.span("reads", num_bytes=size, file=name):` says what the calling thread does meanwhile. A
    lane has the name of its thread, without a number at the end; a thread takes over the lane of one of that
    name that has ended, so that pools which come and go add none. Times are this machine's monotonic clock.
    """

    def __init__(self) -> None:
        self.began_ns = time.time_ns()
        self._zero = time.perf_counter_ns()
        self._lock = threading.Lock()
        self._lanes: list[_Lane] = []
        self._own = threading.local()

    def span(self, word: Word, *, num_bytes: int = 0, file: str = "") -> OpenSpan:
        """A span from `with` until its end, of the calling thread; never around a `yield`. What is not known
        before may be added: `span.num_bytes += size`. While an inner span lasts, the outer one doesn't.
        """
        return OpenSpan(self._own_lane(), word, num_bytes, file)

    def timeline(self, rank: int) -> RankTimeline:
        """What has ended until now."""
        with self._lock:
            lanes = [(lane.name, tuple(lane.spans)) for lane in self._lanes]
        count: dict[str, int] = {}
        found = []
        for name, spans in lanes:
            count[name] = count.get(name, 0) + 1
            of_name = sum(other == name for other, _ in lanes)
            found.append(Lane(f"{name} {count[name]}" if of_name > 1 else name, spans))
        return RankTimeline(rank, self.began_ns, tuple(found))

    def _own_lane(self) -> _Lane:
        lane: _Lane | None = getattr(self._own, "lane", None)
        if lane is None:
            thread = threading.current_thread()
            name = _NUMBER.sub("", thread.name) or thread.name
            with self._lock:
                left = (each for each in self._lanes if each.name == name and not each.thread.is_alive())
                lane = next(left, None)
                if lane is None:
                    lane = _Lane(name, thread, self._zero)
                    self._lanes.append(lane)
                lane.thread = thread
            self._own.lane = lane
        return lane


class OpenSpan:
    """What a worker is doing now."""

    __slots__ = ("_begin", "_lane", "_outer", "file", "num_bytes", "word")

    def __init__(self, lane: _Lane, word: Word, num_bytes: int, file: str) -> None:
        self._lane, self.word, self.num_bytes, self.file = lane, word, num_bytes, file
        self._outer: OpenSpan | None = None
        self._begin = 0

    def __enter__(self) -> OpenSpan:
        now, lane = time.perf_counter_ns(), self._lane
        if (outer := lane.open) is not None:
            lane.add(outer.word, outer._begin, now, 0, outer.file)
            self._outer = outer
        lane.open, self._begin = self, now
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        now, lane = time.perf_counter_ns(), self._lane
        lane.add(self.word, self._begin, now, self.num_bytes, self.file)
        lane.open = self._outer
        if self._outer is not None:
            self._outer._begin = now


class _Lane:
    """Added to by its own thread only."""

    def __init__(self, name: str, thread: threading.Thread, zero: int) -> None:
        self.name, self.thread, self._zero = name, thread, zero
        self.open: OpenSpan | None = None
        self.spans: list[Span] = []

    def add(self, word: Word, begin: int, end: int, num_bytes: int, file: str) -> None:
        begin, end = (begin - self._zero) // 1000, (end - self._zero) // 1000
        self.spans.append(Span(word, begin / 1e6, end / 1e6, num_bytes, file))
        if len(self.spans) > MAX_SPANS:
            self.spans = coarse(self.spans, MAX_SPANS // 2)
