"""The plan: which rank reads, sends, gathers and writes what; a value, made on rank 0."""

from __future__ import annotations

import heapq
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from operator import attrgetter

from pp_export.planning import part_image, proof
from pp_export.planning.assignment import connected
from pp_export.planning.capacity import Capacity
from pp_export.planning.kept import Kept
from pp_export.planning.proof import ProvedPart
from pp_export.planning.rank_plan import DESCRIBED_BOX_BYTES, TENSOR_BYTES, FileToVerify, RankPlan
from pp_export.planning.rounds import Link, Round, links_of, rounds_of
from pp_export.planning.shard_plan import ShardPlan


@dataclass(frozen=True)
class ExportPlan:
    """All shards in file order, a large file as the ranges that it is cut into, and the ranks of each stage
    that makes them.

    `basis` is the digest of what decides the bytes beside the checkpoint: the table, the result's options
    and the version of the package, `capacity` what each rank may take of its node. What is `kept` of an
    earlier run belongs to the export, but nobody makes it again.
    """

    basis: str
    world_size: int
    stages: tuple[tuple[int, ...], ...]
    shards: tuple[ShardPlan, ...]
    capacity: Capacity = Capacity()
    kept: Kept = Kept()

    @property
    def of_everything(self) -> ExportPlan:
        """The plan that it would be if nothing were kept."""
        return self if self.kept == Kept() else replace(self, kept=Kept())

    @cached_property
    def to_make(self) -> tuple[ShardPlan, ...]:
        """The shards that are not kept, in file order."""
        return tuple(shard for shard in self.shards if not self.kept.has(shard.range))

    @property
    def kept_bytes(self) -> int:
        """Bytes of the files, and of ranges of others, that nobody makes again."""
        return sum(shard.num_bytes for shard in self.shards if self.kept.has(shard.range))

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
    def stage_of_rank(self) -> dict[int, int]:
        """The stage of each rank that has one; in a live model, a rank may hold nothing."""
        return {rank: stage for stage, ranks in enumerate(self.stages) for rank in ranks}

    def part_of(self, rank: int) -> RankPlan:
        """What `rank` needs of the plan; those of all ranks are made at once."""
        return self.parts[rank]

    @cached_property
    def parts(self) -> tuple[RankPlan, ...]:
        """What each rank needs, in rank order."""
        return tuple(
            replace(part, fingerprint=self.fingerprint, capacity=self.capacity) for part in self._parts
        )

    @cached_property
    def fingerprint(self) -> str:
        """Digest of all parts and of the basis; every rank derives it from its own part and compares it."""
        return proof.fingerprint(self.basis, self.world_size, self._tree.root)

    def image_of(self, rank: int) -> bytes:
        """The part of a rank as bytes, with the proof that it belongs to this plan."""
        return ProvedPart(self.basis, self._tree.path(rank), self._bodies[rank]).to_bytes()

    @cached_property
    def _bodies(self) -> list[bytes]:
        return list(map(part_image.to_bytes, self._parts))

    @cached_property
    def _tree(self) -> proof.Tree:
        return proof.Tree(list(map(proof.leaf, self._bodies)))

    @cached_property
    def _parts(self) -> tuple[RankPlan, ...]:
        """The parts without the fingerprint, which is made of them."""
        led: defaultdict[int, list[ShardPlan]] = defaultdict(list)
        for shard in self.to_make:
            led[shard.leader].append(shard)
        links: defaultdict[int, dict[Link, int]] = defaultdict(dict)
        for link, count in self.links.items():
            for rank in link:
                links[rank][link] = count
        group_of = {rank: group for group in self.groups for rank in group}
        rounds: dict[int, list[Round]] = {}
        for group in (*self.groups, *((rank,) for rank in range(self.world_size) if rank not in group_of)):
            rounds |= rounds_of(group, led)
        to_verify: defaultdict[int, list[FileToVerify]] = defaultdict(list)
        for ranges, rank in zip(self.files, self.verifiers()):
            first, writers = ranges[0].range, tuple(shard.leader for shard in ranges)
            if first.file in self.kept.files:
                continue
            to_verify[rank].append(FileToVerify(first.file, first.file_bytes, writers))
        return tuple(
            RankPlan(
                rank=rank,
                world_size=self.world_size,
                fingerprint="",
                num_links=len(self.links),
                rounds=tuple(rounds.get(rank, ())),
                led=tuple(led.get(rank, ())),
                group=group_of.get(rank, (rank,)),
                links=links.get(rank, {}),
                to_verify=tuple(to_verify.get(rank, ())),
                described_bytes=0 if rank else self._described_bytes,
            )
            for rank in range(self.world_size)
        )

    @cached_property
    def _described_bytes(self) -> int:
        """The memory that rank 0 needs to describe and plan all of it."""
        parts = (part for shard in self.shards for bucket in shard.buckets for part in bucket.parts)
        num_boxes = len({slice_.item for part in parts for slice_ in part.slices})
        num_tensors = sum(len(shard.tensors) for shard in self.shards)
        return num_boxes * DESCRIBED_BOX_BYTES + num_tensors * TENSOR_BYTES

    def verifiers(self) -> list[int]:
        """The rank that re-reads each of the `files`: never one that wrote it, unless there is no other.
        Those that are kept have been re-read.
        """
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
            for each in (*passed, (load + ranges[0].range.file_bytes, rank)):
                heapq.heappush(loads, each)
            chosen.append(rank)
        return chosen

    @cached_property
    def links(self) -> dict[Link, int]:
        """The bytes that go over the wire from one rank to another, for each pair that exchanges any."""
        return links_of(self.to_make)

    @cached_property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """The ranks that exchange with each other, directly or by others; most plans of files have none."""
        return connected(self.links)

    @cached_property
    def idle_ranks(self) -> tuple[int, ...]:
        """The ranks that neither read nor lead; they may still be among the `verifiers`."""
        return tuple(part.rank for part in self._parts if part.is_idle)
