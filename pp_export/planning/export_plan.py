"""The plan: which rank reads, sends, gathers and writes what; a value, the same on every rank."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from operator import attrgetter

from pp_export.core.digest import json_digest
from pp_export.core.tensors import TensorSpec
from pp_export.planning.assignment import connected
from pp_export.planning.rounds import LOOK_AHEAD, Link, Round, links_of, rounds_of
from pp_export.planning.shard_plan import Bucket, Contribution, ShardPlan
from pp_export.process.ring_buffer import pages

SHARDS_IN_FLIGHT = 2
BASE_BYTES = 300 << 20


@dataclass(frozen=True)
class ExportPlan:
    """All shards in file order, a large file as the ranges that it is cut into, and the ranks of each stage
    that makes them.

    `basis` is the digest of what decides the bytes beside the checkpoint: the table, the result's options
    and the version of the package.
    """

    basis: str
    world_size: int
    stages: tuple[tuple[int, ...], ...]
    shards: tuple[ShardPlan, ...]

    @cached_property
    def files(self) -> tuple[tuple[ShardPlan, ...], ...]:
        """The ranges of each file, one for most."""
        return tuple(tuple(ranges) for _, ranges in groupby(self.shards, key=attrgetter("file")))

    @property
    def total_size(self) -> int:
        return sum(shard.data_bytes for shard in self.shards)

    @property
    def total_parameters(self) -> int:
        return sum(place.spec.num_elements for shard in self.shards for place in shard.tensors)

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the whole plan and its basis; ranks compare it before they start."""
        digests = [json_digest(_told(shard)) for shard in self.shards]
        return json_digest([self.basis, self.world_size, self.stages, digests])

    @cached_property
    def stage_of_rank(self) -> dict[int, int]:
        """The stage of each rank that has one; in a live model, a rank may hold nothing."""
        return {rank: stage for stage, ranks in enumerate(self.stages) for rank in ranks}

    def led_by(self, rank: int) -> list[ShardPlan]:
        """The shards that `rank` gathers and writes, in file order."""
        return self._led_by.get(rank, [])

    def parts_of(self, rank: int) -> list[tuple[ShardPlan, Bucket, Contribution]]:
        """What `rank` reads, in file order; `rounds_of` has the order in which it reads."""
        return self._parts_of.get(rank, [])

    @cached_property
    def _led_by(self) -> dict[int, list[ShardPlan]]:
        led: defaultdict[int, list[ShardPlan]] = defaultdict(list)
        for shard in self.shards:
            led[shard.leader].append(shard)
        return dict(led)

    @cached_property
    def _parts_of(self) -> dict[int, list[tuple[ShardPlan, Bucket, Contribution]]]:
        parts: defaultdict[int, list[tuple[ShardPlan, Bucket, Contribution]]] = defaultdict(list)
        for shard in self.shards:
            for bucket in shard.buckets:
                for part in bucket.parts:
                    parts[part.rank].append((shard, bucket, part))
        return dict(parts)

    def verifiers(self) -> list[int]:
        """The rank that re-reads each of the `files`: never one that wrote it, unless there is no other."""
        loads = [(0, rank) for rank in range(self.world_size)]
        chosen = []
        for ranges in self.files:
            writers = {shard.leader for shard in ranges}
            passed = []
            while loads and loads[0][1] in writers:
                passed.append(heapq.heappop(loads))
            if not loads:
                loads, passed = passed, []
            load, rank = heapq.heappop(loads)
            for each in (*passed, (load + ranges[0].range.layout.num_bytes, rank)):
                heapq.heappush(loads, each)
            chosen.append(rank)
        return chosen

    def read_bytes(self, rank: int) -> int:
        return sum(slice_.num_bytes for _, _, part in self.parts_of(rank) for slice_ in part.slices)

    def sent_bytes(self, rank: int) -> int:
        return self._sent_by[rank]

    @cached_property
    def _sent_by(self) -> Counter[int]:
        sent: Counter[int] = Counter()
        for (sender, _), count in self.links.items():
            sent[sender] += count
        return sent

    @cached_property
    def links(self) -> dict[Link, int]:
        """The bytes that go over the wire from one rank to another, for each pair that exchanges any."""
        return links_of(self.shards)

    @cached_property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """The ranks that exchange with each other, directly or by others; most plans of files have none."""
        return connected(self.links)

    def group_of(self, rank: int) -> tuple[int, ...]:
        """The group of `rank`, or `rank` alone."""
        return self._group_of_rank.get(rank, (rank,))

    @cached_property
    def _group_of_rank(self) -> dict[int, tuple[int, ...]]:
        return {rank: group for group in self.groups for rank in group}

    def rounds_of(self, rank: int) -> tuple[Round, ...]:
        """What `rank` reads, sends, receives and pastes, in the order in which it does."""
        if rank not in self._rounds:
            self._rounds.update(dict.fromkeys(group := self.group_of(rank), ()))
            found = rounds_of(group, self._led_by)
            self._rounds.update({each: tuple(rounds) for each, rounds in found.items()})
        return self._rounds[rank]

    @cached_property
    def _rounds(self) -> dict[int, tuple[Round, ...]]:
        return {}

    def peak_bytes(self, rank: int) -> int:
        """Planned peak of anonymous memory: a constant for the interpreter and libraries, the shards in
        flight, the rounds read ahead, those that are being received, and what is being encoded.
        """
        buffers = (self.image_bytes, self.ahead_bytes, self.incoming_bytes, self.scratch_bytes)
        return BASE_BYTES + sum(num_bytes(rank) for num_bytes in buffers)

    def image_bytes(self, rank: int) -> int:
        """Memory for the shards in hand: as much as SHARDS_IN_FLIGHT consecutive ones of `rank` need."""
        led = [pages(shard.image_bytes) for shard in self.led_by(rank)]
        return max((sum(led[i : i + SHARDS_IN_FLIGHT]) for i in range(len(led))), default=0)

    def ahead_bytes(self, rank: int) -> int:
        """Memory for the parts that `rank` has read and not yet sent or pasted."""
        read = (sum(pages(each.part.num_bytes) for each in r.gives) for r in self.rounds_of(rank))
        return LOOK_AHEAD * max(read, default=0)

    def incoming_bytes(self, rank: int) -> int:
        """Memory for the parts that other ranks send to `rank` and that are not yet pasted."""
        return LOOK_AHEAD * pages(arriving) if (arriving := self.arriving_bytes(rank)) else 0

    def arriving_bytes(self, rank: int) -> int:
        """The most that arrives at `rank` in one round."""
        return max((each.incoming_bytes for each in self.rounds_of(rank)), default=0)

    def outgoing_bytes(self, rank: int) -> int:
        """The most that `rank` sends in one round."""
        return max((each.outgoing_bytes(rank) for each in self.rounds_of(rank)), default=0)

    def scratch_bytes(self, rank: int) -> int:
        """Memory for the tensors of one shard that are still to be encoded."""
        return max((shard.scratch_bytes for shard in self.led_by(rank)), default=0)

    def written_bytes(self, rank: int) -> int:
        return sum(shard.num_bytes for shard in self.led_by(rank))

    @cached_property
    def idle_ranks(self) -> tuple[int, ...]:
        """The ranks that neither read nor lead; they may still be among the `verifiers`."""
        busy = self._led_by.keys() | self._parts_of.keys()
        return tuple(rank for rank in range(self.world_size) if rank not in busy)


_PLACE = attrgetter("name", "spec.dtype.torch_name", "spec.shape", "begin")
_PLACEMENT = attrgetter(
    *("source", "view.offset", "view.shape", "view.strides"),
    *("name", "target.offset", "target.shape", "target.strides"),
)
_SLICE = attrgetter("name", "dtype.torch_name", "box.offset", "box.shape", "item", "begin", "strides")


def _told(shard: ShardPlan) -> list[object]:
    """Everything that decides a shard's bytes and how they come together, as JSON; the order counts."""
    return [
        [shard.file, shard.range.number, shard.range.count, shard.unit, shard.stage, shard.leader],
        list(map(_PLACE, shard.tensors)),
        [[e.kind, _specs(e.inputs), _specs(e.outputs)] for e in shard.encodings],
        list(shard.shapes.items()),
        [list(map(_PLACEMENT, placements)) for placements in shard.placements.values()],
        [
            [bucket.number, [[part.rank, *map(_SLICE, part.slices)] for part in bucket.parts]]
            for bucket in shard.buckets
        ],
    ]


def _specs(specs: Mapping[str, TensorSpec]) -> list[list[str]]:
    return [[name, str(spec)] for name, spec in specs.items()]
