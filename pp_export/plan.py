"""The plan: which rank reads, sends, gathers and writes what. Pure, the same on every rank, linear in the
stored boxes.

Files depend on the HF tensors and `max_shard_bytes` only, never on who reads or writes them: the bytes of an
export are the same for every layout of the checkpoint and every grid of the export.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from pp_export.accounting import Account, Placement
from pp_export.arena import pages
from pp_export.digest import json_digest
from pp_export.dtypes import DType
from pp_export.layout import TensorPlace, arrange, header
from pp_export.tensors import Shape, Slice, TensorSpec
from pp_export.topology import Grid

BUCKET_BYTES = 32 << 20
SHARDS_IN_FLIGHT = 2
READ_AHEAD = 2
BASE_BYTES = 300 << 20
ALIGNMENT = 64

_DIGITS = re.compile(r"(\d+)")


@dataclass(frozen=True)
class Part:
    """What one rank contributes to a bucket: its slices in order, packed one after another."""

    rank: int
    slices: tuple[Slice, ...]

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where each slice begins in the packed message, and, last, the message's length."""
        offsets = [0]
        for piece in self.slices:
            offsets.append(offsets[-1] + -(-piece.num_bytes // ALIGNMENT) * ALIGNMENT)
        return tuple(offsets)

    @property
    def num_bytes(self) -> int:
        return self.offsets[-1]


@dataclass(frozen=True)
class Bucket:
    """A bounded part of a shard: what is read, sent and pasted at once. `number` is unique in the plan."""

    number: int
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class ShardPlan:
    """One output file: its tensors in file order, who leads it, and the buckets that fill it."""

    file: str
    unit: str
    stage: int
    leader: int
    tensors: tuple[TensorPlace, ...]
    placements: Mapping[str, tuple[Placement, ...]]
    buckets: tuple[Bucket, ...]

    @cached_property
    def header(self) -> bytes:
        return header(self.tensors)

    @property
    def data_bytes(self) -> int:
        return self.tensors[-1].end

    @property
    def num_bytes(self) -> int:
        return len(self.header) + self.data_bytes


@dataclass(frozen=True)
class ExportPlan:
    """All shards in file order, and the grid of ranks that makes them."""

    grid: Grid
    shards: tuple[ShardPlan, ...]

    @property
    def total_size(self) -> int:
        return sum(shard.data_bytes for shard in self.shards)

    @property
    def total_parameters(self) -> int:
        return sum(place.spec.num_elements for shard in self.shards for place in shard.tensors)

    @property
    def main_dtype(self) -> DType:
        """The element type of most of the floating-point bytes: what config.json calls the model's."""
        sizes: Counter[DType] = Counter()
        for shard in self.shards:
            for place in shard.tensors:
                sizes[place.spec.dtype] += place.spec.num_bytes * place.spec.dtype.is_floating
        return sizes.most_common(1)[0][0]

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the whole plan; ranks compare it before they start."""
        return json_digest(
            [
                [s.file, s.stage, s.leader, [[t.name, str(t.spec), t.begin] for t in s.tensors]]
                + [
                    [
                        [p.rank, [[c.name, c.box.offset, c.box.shape, c.record, c.begin] for c in p.slices]]
                        for p in b.parts
                    ]
                    for b in s.buckets
                ]
                for s in self.shards
            ]
        )

    def led_by(self, rank: int) -> list[ShardPlan]:
        """The shards that `rank` gathers and writes, in file order."""
        return [shard for shard in self.shards if shard.leader == rank]

    def parts_of(self, rank: int) -> Iterator[tuple[ShardPlan, Bucket, Part]]:
        """What `rank` reads, in the order in which it reads it."""
        for shard in self.shards:
            for bucket in shard.buckets:
                for part in bucket.parts:
                    if part.rank == rank:
                        yield shard, bucket, part

    def verifiers(self) -> list[int]:
        """The rank that re-reads each shard: never the one that wrote it, unless there is no other."""
        load: defaultdict[int, int] = defaultdict(int)
        chosen = []
        for shard in self.shards:
            others = [rank for rank in range(self.grid.world_size) if rank != shard.leader] or [shard.leader]
            chosen.append(min(others, key=lambda rank: (load[rank], rank)))
            load[chosen[-1]] += shard.num_bytes
        return chosen

    def read_bytes(self, rank: int) -> int:
        return sum(piece.num_bytes for _, _, part in self.parts_of(rank) for piece in part.slices)

    def sent_bytes(self, rank: int) -> int:
        return sum(part.num_bytes for shard, _, part in self.parts_of(rank) if shard.leader != rank)

    def peak_bytes(self, rank: int) -> int:
        """Planned peak of anonymous memory: a constant for the interpreter and libraries, the shards in
        flight, the buckets read ahead, and the bucket that is being received.
        """
        return BASE_BYTES + self.image_bytes(rank) + self.ahead_bytes(rank) + self.incoming_bytes(rank)

    def image_bytes(self, rank: int) -> int:
        """Memory for the shards in hand: as much as SHARDS_IN_FLIGHT consecutive ones of `rank` need."""
        led = [pages(shard.num_bytes) for shard in self.led_by(rank)]
        return max((sum(led[i : i + SHARDS_IN_FLIGHT]) for i in range(len(led))), default=0)

    def ahead_bytes(self, rank: int) -> int:
        """Memory for the parts that `rank` has read and not yet sent or pasted."""
        return READ_AHEAD * max((pages(part.num_bytes) for _, _, part in self.parts_of(rank)), default=0)

    def incoming_bytes(self, rank: int) -> int:
        """Memory for the parts of one bucket that other ranks send to `rank`."""
        buckets = (bucket for shard in self.led_by(rank) for bucket in shard.buckets)
        return max(
            (sum(p.num_bytes for p in bucket.parts if p.rank != rank) for bucket in buckets), default=0
        )


def units_of(account: Account) -> list[tuple[int, int]]:
    """The units in file order: embedding, decoder layers, MTP layers, head."""
    return sorted(set(account.unit_of.values()))


def make_plan(
    account: Account,
    slices: Mapping[str, tuple[Slice, ...]],
    grid: Grid,
    *,
    max_shard_bytes: int,
    leaders_per_stage: int | None,
) -> ExportPlan:
    """The plan for exporting `account` from the stored `slices`; `leaders_per_stage` None means every rank
    leads.
    """
    names_of: defaultdict[tuple[int, int], list[str]] = defaultdict(list)
    for name, unit in account.unit_of.items():
        names_of[unit].append(name)
    units = units_of(account)
    files = [
        (unit, tensors) for unit in units for tensors in _split(account, names_of[unit], max_shard_bytes)
    ]
    unit_bytes = [sum(account.outputs[name].num_bytes for name in names_of[unit]) for unit in units]
    stage_of = dict(zip(units, balance(unit_bytes, grid.pipeline)))
    dealer = _Dealer(grid, account, leaders_per_stage)
    shards: list[ShardPlan] = []
    number = 0
    for position, (unit, tensors) in enumerate(files, start=1):
        stage = stage_of[unit]
        buckets = [
            Bucket(number + i, parts) for i, parts in enumerate(dealer.buckets(stage, tensors, slices))
        ]
        number += len(buckets)
        names = set(tensors)
        sources = dict.fromkeys(source for name in tensors for source in account.sources_of[name])
        shards.append(
            ShardPlan(
                file=f"model-{position:05d}-of-{len(files):05d}.safetensors",
                unit=_unit_name(unit),
                stage=stage,
                leader=dealer.lead(stage, sum(spec.num_bytes for spec in tensors.values())),
                tensors=arrange(tensors),
                placements={s: tuple(p for p in account.placements[s] if p.name in names) for s in sources},
                buckets=tuple(buckets),
            )
        )
    return ExportPlan(grid, tuple(shards))


def _split(account: Account, names: list[str], max_shard_bytes: int) -> list[dict[str, TensorSpec]]:
    """The files of the unit that `names` are. HF tensors with a common source stay together, so that it
    travels to one leader only.
    """
    groups: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    for name in names:
        groups[account.sources_of[name]].append(name)
    ordered = sorted(
        (sorted(group, key=_natural) for group in groups.values()), key=lambda group: _natural(group[0])
    )
    files: list[dict[str, TensorSpec]] = [{}]
    size = 0
    for together in ordered:
        group = {name: account.outputs[name] for name in together}
        group_bytes = sum(spec.num_bytes for spec in group.values())
        if files[-1] and size + group_bytes > max_shard_bytes:
            files.append({})
            size = 0
        files[-1].update(group)
        size += group_bytes
    return files


def balance(weights: Sequence[int], num_stages: int) -> list[int]:
    """The stage of every unit: consecutive runs, none empty, the heaviest as light as possible."""
    low, high = max(weights), sum(weights)
    while low < high:
        middle = (low + high) // 2
        if max(_fill(weights, num_stages, middle)) < num_stages:
            high = middle
        else:
            low = middle + 1
    return _fill(weights, num_stages, low)


def _fill(weights: Sequence[int], num_stages: int, capacity: int) -> list[int]:
    """Stages filled up to `capacity` in turn; a new one also begins where each unit left is needed for a
    stage left.
    """
    stages: list[int] = []
    stage = load = 0
    for position, weight in enumerate(weights):
        stages_left = num_stages - 1 - stage
        if position and (load + weight > capacity or len(weights) - position <= stages_left):
            stage, load = stage + 1, 0
        load += weight
        stages.append(stage)
    return stages


class _Dealer:
    """Deals slices to the ranks of a stage and shards to its leaders, keeping count of the bytes."""

    def __init__(self, grid: Grid, account: Account, leaders_per_stage: int | None) -> None:
        self._grid, self._account = grid, account
        self._num_leaders = min(leaders_per_stage or grid.stage_size, grid.stage_size)
        self._num_experts = max(account.expert_of.values(), default=0) + 1
        self._read: defaultdict[int, int] = defaultdict(int)
        self._led: defaultdict[int, int] = defaultdict(int)
        self._owner_of_record: dict[int, int] = {}
        self._ranks_near: dict[tuple[int, int | None, int | None], list[int]] = {}

    def lead(self, stage: int, num_bytes: int) -> int:
        """The leader of the stage's next shard: the one that leads the fewest bytes so far."""
        leader = min(
            self._grid.stage_ranks(stage)[: self._num_leaders], key=lambda rank: (self._led[rank], rank)
        )
        self._led[leader] += num_bytes
        return leader

    def buckets(
        self, stage: int, tensors: Mapping[str, TensorSpec], slices: Mapping[str, tuple[Slice, ...]]
    ) -> list[tuple[Part, ...]]:
        """The buckets of a shard, each filled up to BUCKET_BYTES, with their slices dealt to ranks.

        Slices of one record stay in byte order and with one rank, so that its CRC can run along.
        """
        sources = dict.fromkeys(source for name in tensors for source in self._account.sources_of[name])
        filled: list[defaultdict[int, list[Slice]]] = [defaultdict(list)]
        size = 0
        for source in sources:
            shape = _extent(slices[source])
            for piece in sorted(slices[source], key=lambda piece: piece.box.offset):
                owner = self._owner(stage, source, shape, piece)
                for row in piece.rows(BUCKET_BYTES):
                    if size and size + row.num_bytes > BUCKET_BYTES:
                        filled.append(defaultdict(list))
                        size = 0
                    filled[-1][owner].append(row)
                    size += row.num_bytes
        return [tuple(Part(rank, tuple(held)) for rank, held in sorted(bucket.items())) for bucket in filled]

    def _owner(self, stage: int, source: str, shape: Shape, piece: Slice) -> int:
        if piece.record not in self._owner_of_record:
            near = self._near(stage, self._tensor_part(source, shape, piece), self._expert_part(source))
            owner = min(near, key=lambda rank: (self._read[rank], rank))
            self._owner_of_record[piece.record] = owner
        owner = self._owner_of_record[piece.record]
        self._read[owner] += piece.num_bytes
        return owner

    def _near(self, stage: int, tensor: int | None, expert: int | None) -> list[int]:
        """The ranks of a stage that hold a tensor part and an expert part; None is any."""
        at = (stage, tensor, expert)
        if at not in self._ranks_near:
            places = {rank: self._grid.position(rank) for rank in self._grid.stage_ranks(stage)}
            self._ranks_near[at] = [
                rank
                for rank, place in places.items()
                if tensor in (None, place.tensor) and expert in (None, place.expert)
            ]
        return self._ranks_near[at]

    def _tensor_part(self, source: str, shape: Shape, piece: Slice) -> int | None:
        """The TP part that the slice lies in, or None where it spans several or the tensor is not split."""
        cut = [d for d in range(len(shape)) if piece.box.shape[d] < shape[d]]
        if len(cut) != 1:
            return None
        dim = cut[0]
        length = shape[dim] // (self._account.num_parts_of[source] if dim == 0 else 1)
        begin = piece.box.offset[dim] % length
        first, last = (at * self._grid.tensor // length for at in (begin, begin + piece.box.shape[dim] - 1))
        return first if first == last else None

    def _expert_part(self, source: str) -> int | None:
        expert = self._account.expert_of.get(source)
        return None if expert is None else expert * self._grid.expert // self._num_experts


def _extent(slices: Sequence[Slice]) -> Shape:
    return tuple(
        max(ends) for ends in zip(*[[o + n for o, n in zip(s.box.offset, s.box.shape)] for s in slices])
    )


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key in which numbers count as numbers."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in _DIGITS.split(name)]


def _unit_name(unit: tuple[int, int]) -> str:
    kind, number = unit
    return ("embed", f"layer {number}", f"mtp {number}", "head")[kind]
