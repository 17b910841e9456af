"""In which order buckets travel: rounds, which all ranks that exchange with each other walk together.

Ranks that the plan connects are a *group*. A *round* of a group takes the next bucket of every leader in it.
A rank has posted all that it sends and receives in a round before it waits for any of it, and all walk the
rounds in one order: whoever leads, no two ranks wait for each other.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import NamedTuple

from pp_export.planning.shard_plan import Bucket, Contribution, ShardLabel, ShardPlan

LOOK_AHEAD = 2
"""Rounds whose memory a rank holds at once: one that travels or is pasted, one that is being read."""

Link = tuple[int, int]
"""Who sends, and to whom."""


class LedBucket(NamedTuple):
    """A bucket, and the shard that it is of."""

    shard: ShardPlan
    bucket: Bucket


class Given(NamedTuple):
    """What a rank reads for a bucket of a shard; for one of another leader, it is sent there."""

    shard: ShardLabel
    part: Contribution


class Arrival(NamedTuple):
    """Where the contribution of another rank lies in the memory of a round: from byte `begin`."""

    part: Contribution
    begin: int


@dataclass(frozen=True)
class Round:
    """What one rank does in a round: it gives parts to leaders (itself among them), and takes what others
    give to the bucket that it leads. Where it has neither, it has no such round.
    """

    number: int
    gives: tuple[Given, ...]
    takes: LedBucket | None

    @cached_property
    def arrivals(self) -> tuple[Arrival, ...]:
        """The contributions of other ranks, one after another."""
        found, begin = [], 0
        if self.takes is not None:
            for part in self.takes.bucket.parts:
                if part.rank != self.takes.shard.leader:
                    found.append(Arrival(part, begin))
                    begin += part.num_bytes
        return tuple(found)

    @property
    def incoming_bytes(self) -> int:
        """The memory that arrivals take."""
        return sum(arrival.part.num_bytes for arrival in self.arrivals)

    def outgoing_bytes(self, rank: int) -> int:
        """The memory that takes what `rank`, whose round this is, gives to others."""
        return sum(each.part.num_bytes for each in self.gives if each.shard.leader != rank)


def links_of(shards: Iterable[ShardPlan]) -> dict[Link, int]:
    """The bytes that go from one rank to another, for each such pair; nothing else goes over the wire."""
    links: Counter[Link] = Counter()
    for shard in shards:
        for part in (part for bucket in shard.buckets for part in bucket.parts):
            if part.rank != shard.leader:
                links[part.rank, shard.leader] += part.value_bytes
    return dict(sorted(links.items()))


def rounds_of(group: Sequence[int], led_by: Mapping[int, Sequence[ShardPlan]]) -> dict[int, list[Round]]:
    """The rounds of each rank of a group; a rank without any has no entry."""
    led = [[LedBucket(s, b) for s in led_by.get(rank, ()) for b in s.buckets] for rank in group]
    found: defaultdict[int, list[Round]] = defaultdict(list)
    for number, buckets in enumerate(zip_longest(*led)):
        gives: defaultdict[int, list[Given]] = defaultdict(list)
        takes: dict[int, LedBucket] = {}
        for each in filter(None, buckets):
            takes[each.shard.leader] = each
            for part in each.bucket.parts:
                gives[part.rank].append(Given(each.shard.label, part))
        for rank in sorted({*gives, *takes}):
            found[rank].append(Round(number, tuple(gives[rank]), takes.get(rank)))
    return dict(found)
