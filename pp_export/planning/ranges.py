"""Cuts a large file into ranges, each led by a rank of its own: where there are more ranks than files, all of
them can help. Names, offsets and bytes of the files don't depend on it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from pp_export.planning.file_layout import FileLayout, FileRange, TensorPlace
from pp_export.planning.runs import balance, heaviest

MIN_RANGE_BYTES = 64 << 20
"""Less than this is not worth a leader of its own: who gets it waits for its first byte longer than for all
of them.
"""


def cut_ranges(
    layout: FileLayout, ties_of: Callable[[str], Collection[str]], fair_share: int
) -> list[FileRange]:
    """The ranges of a file: as many as it has times `fair_share` (bytes of the model for each rank), rounded,
    of MIN_RANGE_BYTES and more, and no more than it takes to make the heaviest as light as so many can.

    Tensors that have one of their `ties_of` in common stay in one range, with what lies between them. Where
    that leaves a range that is larger than a fair share, the others may be as large.
    """
    num_bytes = layout.tensors[-1].end
    count = min((2 * num_bytes + fair_share) // max(1, 2 * fair_share), num_bytes // MIN_RANGE_BYTES)
    groups = _groups(layout.tensors, ties_of) if count > 1 else []
    if len(groups) < 2:
        return [FileRange.whole(layout)]
    weights = [group[-1].end - group[0].begin for group in groups]
    capacity = heaviest(weights, balance(weights, min(count, len(groups))))
    runs: list[list[TensorPlace]] = [[]]
    load = 0
    for group, weight in zip(groups, weights):
        if runs[-1] and load + weight > capacity:
            runs.append([])
            load = 0
        runs[-1] += group
        load += weight
    return [layout.range(number, len(runs), tuple(places)) for number, places in enumerate(runs)]


def _groups(
    places: Sequence[TensorPlace], ties_of: Callable[[str], Collection[str]]
) -> list[list[TensorPlace]]:
    """Runs of tensors that no tie leads out of, as short as possible."""
    ties = [ties_of(place.name) for place in places]
    last_of = {tie: position for position, tied in enumerate(ties) for tie in tied}
    groups: list[list[TensorPlace]] = []
    end = -1
    for position, (place, tied) in enumerate(zip(places, ties)):
        if position > end:
            groups.append([])
        groups[-1].append(place)
        end = max(end, position, *map(last_of.__getitem__, tied))
    return groups
