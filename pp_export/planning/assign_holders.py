"""Deals the slices of a live model to the ranks that hold them."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from pp_export.architecture.units import Unit
from pp_export.planning.assignment import (
    Assignment,
    FileContent,
    connected,
    largest_part,
    leaders_of,
    parts_of_items,
)


@dataclass(frozen=True)
class Holders:
    """The ranks that hold each item of a live model: set number `set_of_item[item]` of `sets`."""

    sets: Sequence[Sequence[int]]
    set_of_item: Sequence[int]


def assign_holders(
    files: Sequence[FileContent], holders: Holders, leaders_per_stage: int | None
) -> Assignment:
    """The ranks that hold slices of one unit are of one stage. All of them share the leading, replicas too,
    and a leader takes a slice from itself or else from the nearest rank that holds it, so that replicas do
    the same work side by side and bytes stay within a node where they can.
    """
    sets = [tuple(sorted(ranks)) for ranks in holders.sets]
    sets_of_unit: defaultdict[Unit, dict[int, None]] = defaultdict(dict)
    for file in files:
        for item in file.item_bytes:
            sets_of_unit[file.unit][holders.set_of_item[item]] = None
    used = [sets[number] for number in {n: None for numbers in sets_of_unit.values() for n in numbers}]
    first_ranks = [[sets[number][0] for number in numbers] for numbers in sets_of_unit.values()]
    stages = connected([*used, *first_ranks])
    stage_of_rank = {rank: stage for stage, ranks in enumerate(stages) for rank in ranks}
    stage_of_file = [stage_of_rank[sets[next(iter(sets_of_unit[file.unit]))][0]] for file in files]
    leaders = leaders_of(files, stage_of_file, stages, sets, holders.set_of_item, leaders_per_stage)

    members = [frozenset(ranks) for ranks in sets]
    read: defaultdict[int, int] = defaultdict(int)
    nearest: dict[tuple[int, int], Sequence[int]] = {}
    reader_of: dict[int, int] = {}
    for item, of_leader in parts_of_items(files, leaders).items():
        number = holders.set_of_item[item]
        own = {leader: count for leader, count in of_leader.items() if leader in members[number]}
        leader = largest_part(own or of_leader)
        if own:
            reader = leader
        else:
            if (number, leader) not in nearest:
                nearest[number, leader] = nearest_ranks(sets[number], leader)
            reader = min(nearest[number, leader], key=lambda rank: (read[rank], rank))
        read[reader] += sum(of_leader.values())
        reader_of[item] = reader
    return Assignment(stages, leaders, reader_of)


def nearest_ranks(ranks: Sequence[int], to: int) -> Sequence[int]:
    """Those of sorted `ranks` that are nearest to a rank. Nodes are runs of ranks, mostly of a power of two:
    the fewer low bits differ, the nearer.
    """
    for bits in range(max(to, ranks[-1]).bit_length() + 1):
        begin = to >> bits << bits
        found = ranks[bisect_left(ranks, begin) : bisect_left(ranks, begin + (1 << bits))]
        if found:
            break
    return found
