"""Deals files that every rank can read to a grid of ranks that the user asked for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from pp_export.architecture.accounting import Account
from pp_export.architecture.units import Unit
from pp_export.core.numbering import Numbering
from pp_export.core.tensors import Slice
from pp_export.planning.assignment import (
    Assignment,
    FileContent,
    connected,
    largest_part,
    leaders_of,
    parts_of_items,
)
from pp_export.planning.leaders import with_slack
from pp_export.planning.least_loaded import LeastLoaded
from pp_export.planning.rank_grid import RankGrid
from pp_export.planning.runs import balance


def assign_grid(
    files: Sequence[FileContent], grid: RankGrid, account: Account, leaders_per_stage: int | None
) -> Assignment:
    """Units in consecutive runs for the grid's stages. Rank (t, e) of a stage is dealt the boxes of its own
    TP part and its own experts, Megatron's slices of that rank.

    Where several ranks may read an item its leader does, up to 20% more than a fair share of its stage; then
    who has read the least.
    """
    unit_bytes: dict[Unit, int] = {}
    for file in files:
        unit_bytes[file.unit] = unit_bytes.get(file.unit, 0) + file.num_bytes
    stage_of_unit = dict(zip(unit_bytes, balance(list(unit_bytes.values()), len(grid.blocks))))
    stage_of_file = [stage_of_unit[file.unit] for file in files]
    stages = [tuple(grid.stage_ranks(stage)) for stage in range(len(grid.blocks))]
    parts_of_grid = _GridParts(grid, account)
    set_of_item: dict[int, int] = {}
    to_read = [0] * len(stages)
    for file, stage in zip(files, stage_of_file):
        to_read[stage] += sum(file.item_bytes.values())
        for slice_ in file.slices:
            if slice_.item not in set_of_item:
                set_of_item[slice_.item] = parts_of_grid.number(stage, slice_)
    sets = list(parts_of_grid.sets)
    leaders = leaders_of(files, stage_of_file, stages, sets, set_of_item, leaders_per_stage)

    fair_share = [with_slack(-(-num_bytes // len(ranks))) for num_bytes, ranks in zip(to_read, stages)]
    fair_share_of = {rank: fair_share[stage] for stage, ranks in enumerate(stages) for rank in ranks}
    read: defaultdict[int, int] = defaultdict(int)
    least_read = [LeastLoaded(ranks, read) for ranks in sets]
    members = [frozenset(ranks) for ranks in sets]
    reader_of: dict[int, int] = {}
    parts = parts_of_items(files, leaders)
    for item, of_leader in parts.items():
        reader, num_bytes, number = largest_part(of_leader), sum(of_leader.values()), set_of_item[item]
        if reader not in members[number] or read[reader] + num_bytes > fair_share_of[reader]:
            reader = least_read[number].first()
        read[reader] += num_bytes
        reader_of[item] = reader
    meetings = [(reader_of[item], *of_leader) for item, of_leader in parts.items() if len(of_leader) > 1]
    return Assignment(connected([*stages, *meetings]), leaders, reader_of)


class _GridParts:
    """The `sets` of ranks of a grid that are dealt slices, by their TP part and their experts."""

    def __init__(self, grid: RankGrid, account: Account) -> None:
        self._grid, self._account = grid, account
        self._num_experts = max(account.expert_of.values(), default=0) + 1
        self._found: dict[tuple[int, int | None, int | None], int] = {}
        self.sets: Numbering[tuple[int, ...]] = Numbering()

    def number(self, stage: int, slice_: Slice) -> int:
        """The number of the set of ranks of the stage near the slice's tensor part and expert part; where it
        has none, all are.
        """
        at = (stage, self._tensor_part(slice_), self._expert_part(slice_.name))
        if at not in self._found:
            places = {rank: self._grid.position(rank) for rank in self._grid.stage_ranks(stage)}
            near = tuple(
                rank
                for rank, place in places.items()
                if at[1] in (None, place.tensor) and at[2] in (None, place.expert)
            )
            self._found[at] = self.sets[near]
        return self._found[at]

    def _tensor_part(self, slice_: Slice) -> int | None:
        """The TP part that the slice lies in, or None where it spans several or the tensor is not split."""
        shape = self._account.shapes[slice_.name]
        cut = [d for d in range(len(shape)) if slice_.box.shape[d] < shape[d]]
        if len(cut) != 1:
            return None
        dim = cut[0]
        length = shape[dim] // (self._account.num_parts_of[slice_.name] if dim == 0 else 1)
        begin = slice_.box.offset[dim] % length
        first, last = (at * self._grid.tensor // length for at in (begin, begin + slice_.box.shape[dim] - 1))
        return first if first == last else None

    def _expert_part(self, source: str) -> int | None:
        expert = self._account.expert_of.get(source)
        return None if expert is None else expert * self._grid.expert // self._num_experts
