"""Who reads, and who leads: two ways to deal slices and shards to ranks.

Where every rank can read every slice (files on a shared filesystem), a grid of the export's own decides.
Where ranks hold slices (a live model, one file per rank), those that hold a unit's slices are its stage.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence

from pp_export.architecture.accounting import Account
from pp_export.architecture.units import Unit
from pp_export.core.tensors import Shape, Slice
from pp_export.planning.rank_grid import RankGrid

Slices = Mapping[str, tuple[Slice, ...]]


class Assignment(ABC):
    """Deals slices to the ranks of a stage and shards to its leaders, keeping count of the bytes.

    `stages` are the ranks of each stage, `stage_of` the stage of each unit.
    """

    stages: tuple[tuple[int, ...], ...]
    stage_of: Mapping[Unit, int]

    def __init__(self) -> None:
        self._read: defaultdict[int, int] = defaultdict(int)
        self._led: defaultdict[int, int] = defaultdict(int)
        self._owner_of_item: dict[int, int] = {}

    @abstractmethod
    def leaders(self, stage: int) -> Sequence[int]:
        """The ranks of a stage that may lead."""

    @abstractmethod
    def candidates(self, stage: int, shape: Shape, slice_: Slice) -> Sequence[int]:
        """The ranks that may read a slice of a tensor of `shape`."""

    def lead(self, stage: int, num_bytes: int) -> int:
        """The leader of the stage's next shard: the one that leads the fewest bytes so far."""
        leader = min(self.leaders(stage), key=lambda rank: (self._led[rank], rank))
        self._led[leader] += num_bytes
        return leader

    def owner(self, stage: int, leader: int, shape: Shape, slice_: Slice) -> int:
        """The rank that reads a slice. Slices of one item stay with one rank, so that its CRC can run
        along.
        """
        if slice_.item not in self._owner_of_item:
            ranks = self.candidates(stage, shape, slice_)
            self._owner_of_item[slice_.item] = min(ranks, key=lambda rank: self.cost(rank, leader))
        owner = self._owner_of_item[slice_.item]
        self._read[owner] += slice_.num_bytes
        return owner

    def cost(self, rank: int, leader: int) -> tuple[int, ...]:
        """The lowest reads: who has read the fewest bytes so far."""
        return (self._read[rank], rank)


class GridAssignment(Assignment):
    """Deals to the export's own grid. Rank (t, e) of a stage is dealt the boxes of its own TP part and its
    own experts, Megatron's slice of that rank; what is replicated is dealt by bytes.
    """

    def __init__(
        self, grid: RankGrid, account: Account, stage_of: Mapping[Unit, int], leaders_per_stage: int | None
    ) -> None:
        super().__init__()
        self.stages = tuple(tuple(grid.stage_ranks(stage)) for stage in range(grid.pipeline))
        self.stage_of = stage_of
        self._grid, self._account = grid, account
        self._num_leaders = min(leaders_per_stage or grid.stage_size, grid.stage_size)
        self._num_experts = max(account.expert_of.values(), default=0) + 1
        self._ranks_near: dict[tuple[int, int | None, int | None], list[int]] = {}

    def leaders(self, stage: int) -> Sequence[int]:
        return self.stages[stage][: self._num_leaders]

    def candidates(self, stage: int, shape: Shape, slice_: Slice) -> Sequence[int]:
        """The ranks near the slice's tensor part and expert part; None is any."""
        at = (stage, self._tensor_part(shape, slice_), self._expert_part(slice_.name))
        if at not in self._ranks_near:
            places = {rank: self._grid.position(rank) for rank in self.stages[stage]}
            self._ranks_near[at] = [
                rank
                for rank, place in places.items()
                if at[1] in (None, place.tensor) and at[2] in (None, place.expert)
            ]
        return self._ranks_near[at]

    def _tensor_part(self, shape: Shape, slice_: Slice) -> int | None:
        """The TP part that the slice lies in, or None where it spans several or the tensor is not split."""
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


class HolderAssignment(Assignment):
    """Deals to the ranks that hold the slices: `holders` gives them for each item.

    Ranks that hold slices of one unit are of one stage. All of them share the leading, replicas too, and a
    leader takes a slice from itself or else from the nearest rank that holds it, so that replicas do the same
    work side by side and bytes stay within a node where they can.
    """

    def __init__(
        self,
        holders: Sequence[Sequence[int]],
        items_of: Mapping[Unit, Sequence[int]],
        leaders_per_stage: int | None,
    ) -> None:
        super().__init__()
        self._holders = holders
        self.stages, self.stage_of = _joined(
            {unit: {rank for item in items for rank in holders[item]} for unit, items in items_of.items()}
        )
        self._leaders = [_spread(ranks, leaders_per_stage) for ranks in self.stages]

    def leaders(self, stage: int) -> Sequence[int]:
        return self._leaders[stage]

    def candidates(self, stage: int, shape: Shape, slice_: Slice) -> Sequence[int]:
        return self._holders[slice_.item]

    def cost(self, rank: int, leader: int) -> tuple[int, ...]:
        # Nodes are runs of ranks, mostly of a power of two: the fewer low bits differ, the nearer.
        return ((rank ^ leader).bit_length(), *super().cost(rank, leader))


def _joined(ranks_of: Mapping[Unit, set[int]]) -> tuple[tuple[tuple[int, ...], ...], dict[Unit, int]]:
    """The stages: units whose ranks overlap are of one stage. In the order of their first ranks."""
    stages: list[set[int]] = []
    for ranks in ranks_of.values():
        together = [stage for stage in stages if stage & ranks]
        stages = [stage for stage in stages if not stage & ranks] + [ranks.union(*together)]
    ordered = tuple(sorted(tuple(sorted(stage)) for stage in stages))
    number = {rank: at for at, ranks in enumerate(ordered) for rank in ranks}
    return ordered, {unit: number[min(ranks)] for unit, ranks in ranks_of.items()}


def _spread(ranks: Sequence[int], number: int | None) -> list[int]:
    """`number` of the ranks (None: all), as far apart as they can be."""
    count = min(number or len(ranks), len(ranks))
    return [ranks[at * len(ranks) // count] for at in range(count)]
