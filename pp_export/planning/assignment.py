"""Who leads which file, and who reads which item; the words and steps that all three ways to deal share.

Where every rank can read every slice (files on a shared filesystem), each reads what it writes
(`assign_shared`), unless the user asks for a grid of TP and EP parts (`assign_grid`). Where ranks hold slices
(a live model), those that hold a unit's slices are its stage (`assign_holders`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from pp_export.architecture.units import Unit
from pp_export.core.tensors import Slice
from pp_export.planning.leaders import choose_leaders


@dataclass(frozen=True)
class FileContent:
    """What a file takes: its unit, the bytes of its tensors, and the stored slices that fill it."""

    unit: Unit
    num_bytes: int
    slices: tuple[Slice, ...]

    @cached_property
    def slice_bytes(self) -> list[int]:
        """The bytes of each slice."""
        return [slice_.num_bytes for slice_ in self.slices]

    @cached_property
    def item_bytes(self) -> dict[int, int]:
        """How many bytes it takes of each stored item."""
        found: dict[int, int] = {}
        for slice_, num_bytes in zip(self.slices, self.slice_bytes):
            found[slice_.item] = found.get(slice_.item, 0) + num_bytes
        return found


@dataclass(frozen=True)
class Assignment:
    """The leader of each file, the one rank that reads each item (so that the item's CRC can run along), and
    the ranks that have to do with one another.

    A file's leader and its readers are of one stage, and stages have no rank in common.
    """

    stages: tuple[tuple[int, ...], ...]
    leaders: tuple[int, ...]
    reader_of: Mapping[int, int]

    @cached_property
    def stage_of(self) -> dict[int, int]:
        """The stage of each rank that has one."""
        return {rank: stage for stage, ranks in enumerate(self.stages) for rank in ranks}


def connected(groups: Iterable[Iterable[int]]) -> tuple[tuple[int, ...], ...]:
    """The ranks of all groups, those together that groups connect, in order of their first ranks."""
    above: dict[int, int] = {}

    def top(rank: int) -> int:
        while above.setdefault(rank, rank) != rank:
            above[rank] = above[above[rank]]
            rank = above[rank]
        return rank

    for group in groups:
        first, *others = map(top, group)
        for other in others:
            low, high = sorted((top(first), top(other)))
            above[high] = low
    together: defaultdict[int, list[int]] = defaultdict(list)
    for rank in sorted(above):
        together[top(rank)].append(rank)
    return tuple(map(tuple, together.values()))


def leaders_of(
    files: Sequence[FileContent],
    stage_of_file: Sequence[int],
    stages: Sequence[Sequence[int]],
    sets: Sequence[Sequence[int]],
    set_of_item: Sequence[int] | Mapping[int, int],
    leaders_per_stage: int | None,
) -> tuple[int, ...]:
    """The leader of each file, chosen stage by stage. `sets` may read the items, as `set_of_item` says."""
    leaders = [0] * len(files)
    of_stage: defaultdict[int, list[int]] = defaultdict(list)
    for number, stage in enumerate(stage_of_file):
        of_stage[stage].append(number)
    for stage, numbers in of_stage.items():
        needs: list[defaultdict[int, int]] = [defaultdict(int) for _ in numbers]
        for number, need in zip(numbers, needs):
            for item, num_bytes in files[number].item_bytes.items():
                need[set_of_item[item]] += num_bytes
        sizes = [files[number].num_bytes for number in numbers]
        chosen = choose_leaders(sizes, needs, sets, _spread(stages[stage], leaders_per_stage))
        for number, leader in zip(numbers, chosen):
            leaders[number] = leader
    return tuple(leaders)


def parts_of_items(
    files: Sequence[FileContent], leaders: Sequence[int], items: Collection[int] | None = None
) -> dict[int, dict[int, int]]:
    """For each item (of `items`, if any), how many bytes of it go to which leader, in file order."""
    found: dict[int, dict[int, int]] = {}
    for file, leader in zip(files, leaders):
        for item, num_bytes in file.item_bytes.items():
            if items is not None and item not in items:
                continue
            of_leader = found.setdefault(item, {})
            of_leader[leader] = of_leader.get(leader, 0) + num_bytes
    return found


def largest_part(of_leader: Mapping[int, int]) -> int:
    """The leader of the most bytes, of equal ones the first."""
    return max(of_leader, key=of_leader.__getitem__)


def _spread(ranks: Sequence[int], number: int | None) -> list[int]:
    """`number` of the ranks (None: all), as far apart as they can be."""
    count = min(number or len(ranks), len(ranks))
    return [ranks[at * len(ranks) // count] for at in range(count)]
