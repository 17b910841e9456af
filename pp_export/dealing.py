"""Makes the plan: cuts units into files, files into buckets, and deals slices and shards to ranks.

Files depend on the HF tensors and `max_shard_bytes` only, never on who reads or writes them: the bytes of an
export are the same for every layout of the checkpoint and every grid of the export.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

from pp_export.accounting import Account
from pp_export.layout import arrange
from pp_export.plan import Bucket, ExportPlan, Part, ShardPlan
from pp_export.tensors import Shape, Slice, TensorSpec
from pp_export.topology import Grid

BUCKET_BYTES = 8 << 20

_DIGITS = re.compile(r"(\d+)")


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
        sources = list(dict.fromkeys(source for name in tensors for source in account.sources_of[name]))
        buckets = [
            Bucket(number + i, parts) for i, parts in enumerate(dealer.buckets(stage, sources, slices))
        ]
        number += len(buckets)
        shards.append(
            ShardPlan(
                file=f"model-{position:05d}-of-{len(files):05d}.safetensors",
                unit=_unit_name(unit),
                stage=stage,
                leader=dealer.lead(stage, sum(spec.num_bytes for spec in tensors.values())),
                tensors=arrange(tensors),
                placements={s: tuple(p for p in account.placements[s] if p.name in tensors) for s in sources},
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
        self, stage: int, sources: Sequence[str], slices: Mapping[str, tuple[Slice, ...]]
    ) -> list[tuple[Part, ...]]:
        """The buckets of the shard of `sources`, filled up to BUCKET_BYTES, with their slices dealt to ranks.

        Slices of one record stay in byte order and with one rank, so that its CRC can run along.
        """
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
