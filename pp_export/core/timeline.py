"""Who did what, when: a run as spans of time, measured (`process.recorder`) or predicted (`planning`).

A *span* is what one worker of a rank did from when to when, in a *word* of a closed list; a *lane* are the
spans of one worker, a *timeline* the lanes of all ranks. Spans that are too many are merged: time is told
more coarsely then, but bytes and busy seconds stay exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, get_args

Word = Literal[
    "starts",
    "describes",
    "plans",
    "waits",
    "reads",
    "sends",
    "receives",
    "pastes",
    "encodes",
    "hashes",
    "writes",
    "verifies",
    "publishes",
]
WORDS: tuple[Word, ...] = get_args(Word)

_MICRO = 1_000_000
_MAX_SHOWN = 48

SPANS_SHOWN = 200
"""Spans of a lane that are kept when a timeline leaves its rank."""


class Span(NamedTuple):
    """What a worker did in [begin, end), in seconds since the timeline's zero, with how many bytes.

    One that was merged of `num_merged` spans did something else, or nothing, in `idle_seconds` of it; `file`
    is empty where they were of several files, or of none.
    """

    word: Word
    begin: float
    end: float
    num_bytes: int = 0
    file: str = ""
    num_merged: int = 1
    idle_seconds: float = 0.0

    @property
    def busy_seconds(self) -> float:
        return self.end - self.begin - self.idle_seconds

    def later(self, seconds: float) -> Span:
        """The same, `seconds` later."""
        return self._replace(begin=round(self.begin + seconds, 6), end=round(self.end + seconds, 6))

    def with_next(self, following: Span) -> Span:
        """This span and a later one of the same word and worker as one."""
        return Span(
            self.word,
            self.begin,
            following.end,
            self.num_bytes + following.num_bytes,
            self.file if self.file == following.file else "",
            self.num_merged + following.num_merged,
            round(self.idle_seconds + following.begin - self.end + following.idle_seconds, 6),
        )


@dataclass(frozen=True)
class Lane:
    """What one worker did, in the order in which it began it."""

    worker: str
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class RankTimeline:
    """The lanes of one rank. `began_ns` is its zero, in nanoseconds of Unix time by this machine's clock."""

    rank: int
    began_ns: int
    lanes: tuple[Lane, ...]

    def since(self, began_ns: int) -> RankTimeline:
        """The same with another zero."""
        later = (self.began_ns - began_ns) / 1e9
        lanes = (replace(lane, spans=tuple(span.later(later) for span in lane.spans)) for lane in self.lanes)
        return RankTimeline(self.rank, began_ns, tuple(lanes))

    def coarse(self, limit: int) -> RankTimeline:
        """The same with at most `limit` spans in a lane."""
        lanes = (replace(lane, spans=tuple(coarse(lane.spans, limit))) for lane in self.lanes)
        return replace(self, lanes=tuple(lanes))

    def to_json(self) -> dict[str, Any]:
        """A compact form: a span is a row of whole numbers (`_row`), a file the number of its name."""
        files: dict[str, int] = {}
        lanes = [[lane.worker, [_row(span, files) for span in lane.spans]] for lane in self.lanes]
        return {"rank": self.rank, "began_ns": self.began_ns, "files": list(files), "lanes": lanes}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> RankTimeline:
        """What `to_json` gave, to the microsecond."""
        lanes = (
            Lane(worker, tuple(_span(row, value["files"]) for row in rows)) for worker, rows in value["lanes"]
        )
        return cls(value["rank"], value["began_ns"], tuple(lanes))


@dataclass(frozen=True)
class Timeline:
    """The lanes of all ranks, or of some, since one common zero; `phases` are the [begin, end) of each phase
    of the run, by name, in seconds.
    """

    phases: Mapping[str, tuple[float, float]]
    ranks: tuple[RankTimeline, ...]

    @classmethod
    def of(cls, ranks: Iterable[RankTimeline], phases: Mapping[str, tuple[float, float]]) -> Timeline:
        """The timeline of ranks that each have a zero of their own: the earliest is the common one.

        On one node that is exact to microseconds; across nodes as exact as their clocks agree.
        """
        found = sorted(ranks, key=lambda each: each.rank)
        began_ns = min((each.began_ns for each in found), default=0)
        return cls(dict(phases), tuple(each.since(began_ns) for each in found))

    @property
    def end(self) -> float:
        """When the last span and the last phase have ended."""
        ends = [span.end for each in self.ranks for lane in each.lanes for span in lane.spans]
        return max([*ends, *(end for _, end in self.phases.values())], default=0.0)

    def to_json(self) -> dict[str, Any]:
        """The timeline as JSON values; spans are rows of numbers, `words` says which number is which word."""
        return {
            "words": list(WORDS),
            "phases": {name: list(both) for name, both in self.phases.items()},
            "ranks": [each.to_json() for each in self.ranks],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Timeline:
        """What `to_json` gave, to the microsecond."""
        phases = {name: (begin, end) for name, (begin, end) in value["phases"].items()}
        return cls(phases, tuple(map(RankTimeline.from_json, value["ranks"])))


def shown_ranks(world_size: int) -> list[int]:
    """The ranks whose timelines are kept: all of some dozens; of more, evenly spaced ones, the first and the
    last among them.
    """
    count = min(world_size, _MAX_SHOWN)
    return [number * (world_size - 1) // max(1, count - 1) for number in range(count)]


def coarse(spans: Sequence[Span], limit: int) -> list[Span]:
    """The spans of a lane as at most `limit` (not less than there are words): those of one word that began
    about the same time are merged.
    """
    found = list(spans)
    limit = max(limit, len(WORDS))
    width = (found[-1].begin - found[0].begin) / limit if len(found) > limit else 0.0
    while len(found) > limit:
        last_of: dict[Word, int] = {}
        merged: list[Span] = []
        for span in found:
            place = last_of.get(span.word)
            if place is not None and (not width or merged[place].begin // width == span.begin // width):
                merged[place] = merged[place].with_next(span)
            else:
                last_of[span.word] = len(merged)
                merged.append(span)
        found, width = merged, 2 * width
    return found


def _row(span: Span, files: dict[str, int]) -> list[int]:
    """Word, begin, length, bytes, file (-1: none), count, idle time; times in microseconds. What says nothing
    is left out at the end.
    """
    begin, end, idle = (round(at * _MICRO) for at in (span.begin, span.end, span.idle_seconds))
    file = files.setdefault(span.file, len(files)) if span.file else -1
    row = [WORDS.index(span.word), begin, end - begin, span.num_bytes, file, span.num_merged, idle]
    return row if span.num_merged > 1 else row[:5] if span.file else row[:4]


def _span(row: Sequence[int], files: Sequence[str]) -> Span:
    word, begin, length, num_bytes, *rest = row
    file, count, idle = (*rest, *(-1, 1, 0)[len(rest) :])
    name = files[file] if file >= 0 else ""
    end = begin + length
    return Span(WORDS[word], begin / _MICRO, end / _MICRO, num_bytes, name, count, idle / _MICRO)
