"""Deals files that every rank can read: each rank reads what it writes."""

from __future__ import annotations

from collections.abc import Sequence

from pp_export.planning.assignment import Assignment, FileContent, connected, largest_part, parts_of_items
from pp_export.planning.leaders import with_slack
from pp_export.planning.runs import balance, heaviest


def assign_shared(files: Sequence[FileContent], world_size: int) -> Assignment:
    """Consecutive runs of files, the heaviest as light as possible, led by ranks that are spread evenly.

    A leader reads what it leads, so nothing is sent; except where an item reaches into the run of another
    leader: who leads the most of it reads it. Runs end where items do if they are within 20% as light then.
    """
    runs = _runs(files, world_size)
    num_runs = runs[-1] + 1
    leaders = tuple(run * world_size // num_runs for run in runs)
    reader_of: dict[int, int] = {}
    shared = {
        item
        for file, leader in zip(files, leaders)
        for item in file.item_bytes
        if reader_of.setdefault(item, leader) != leader
    }
    parts = parts_of_items(files, leaders, shared) if shared else {}
    reader_of |= {item: largest_part(of_leader) for item, of_leader in parts.items()}
    groups = [*((leader,) for leader in leaders), *parts.values()]
    return Assignment(connected(groups), leaders, reader_of)


def _runs(files: Sequence[FileContent], world_size: int) -> list[int]:
    """The run of each file."""
    weights = [file.num_bytes for file in files]
    runs = balance(weights, min(world_size, len(files)))
    last_of_item = {item: number for number, file in enumerate(files) for item in file.item_bytes}
    bundles: list[int] = []
    """Files with common items are of one bundle."""
    bundle = end = 0
    for number, file in enumerate(files):
        bundle += number > end
        end = max(number, end, *(last_of_item[item] for item in file.item_bytes))
        bundles.append(bundle)
    of_bundle = [0] * (bundle + 1)
    for number, weight in zip(bundles, weights):
        of_bundle[number] += weight
    uncut = balance(of_bundle, min(world_size, len(of_bundle)))
    if heaviest(of_bundle, uncut) <= with_slack(heaviest(weights, runs)):
        return [uncut[number] for number in bundles]
    return runs
