"""Who leads: near the bytes, as far as all leaders of a stage have about as much to write."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Mapping, Sequence

RANKS_PER_NODE = 8
"""Ranks that are likely on one node: plans don't know nodes, and these divide most."""


def with_slack(num_bytes: int) -> int:
    """What a rank may do where `num_bytes` are its fair share: balance within 20%."""
    return num_bytes * 6 // 5


def choose_leaders(
    sizes: Sequence[int],
    needs: Sequence[Mapping[int, int]],
    sets: Sequence[Sequence[int]],
    may_lead: Sequence[int],
) -> list[int]:
    """The leader of each file of a stage, one of the ranks that `may_lead`.

    `sizes` are the bytes of the files; `needs` says, for each, how many bytes every set of ranks can give,
    by its number in `sets`. The largest files are dealt first. Of the leaders that stay within 20% of their
    fair share, that one is taken which needs the fewest bytes from other nodes, then from other ranks, then
    from which the least is expected: what it leads, and its share of the files that are still to come and
    best led by it and others like it. Where none stays within its share, who leads the least.

    Ranks that the sets don't tell apart are looked at as one, so that the work grows with the number of such
    groups and not with the number of ranks.
    """
    fair_share = with_slack(max(*sizes, -(-sum(sizes) // len(may_lead))))
    groups, holding, near = _groups(sets, may_lead)
    heaps = [[(0, rank) for rank in group] for group in groups]
    costs = [_costs(need, len(groups), holding, near) for need in needs]
    expected, shares = [0] * len(groups), []
    for size, of_group in zip(sizes, costs):
        cheapest = min(of_group)
        best = [group for group, cost in enumerate(of_group) if cost == cheapest]
        shares.append((best, size // len(best)))
        for group in best:
            expected[group] += size // len(best)
    leaders = [0] * len(sizes)
    for file in sorted(range(len(sizes)), key=lambda file: (-sizes[file], file)):
        size, (best, share) = sizes[file], shares[file]
        for group in best:
            expected[group] -= share
        choices = []
        for group, heap in enumerate(heaps):
            (led, rank), (far, sent) = heap[0], costs[file][group]
            if led + size <= fair_share:
                choices.append((0, far, sent, expected[group] // len(heap), led, rank, group))
            else:
                choices.append((1, led, far, sent, 0, rank, group))
        chosen = min(choices)[-1]
        led, leaders[file] = heaps[chosen][0]
        heapq.heapreplace(heaps[chosen], (led + size, leaders[file]))
        expected[chosen] += size
    return leaders


def _costs(
    need: Mapping[int, int], num_groups: int, holding: Sequence[Sequence[int]], near: Sequence[Sequence[int]]
) -> list[tuple[int, int]]:
    """For each group, the bytes that its ranks would need from other nodes, and from other ranks at all."""
    from_far, sent = ([sum(need.values())] * num_groups for _ in range(2))
    for number, num_bytes in need.items():
        for group in holding[number]:
            sent[group] -= num_bytes
        for group in near[number]:
            from_far[group] -= num_bytes
    return list(zip(from_far, sent))


def _groups(
    sets: Sequence[Sequence[int]], ranks: Sequence[int]
) -> tuple[list[list[int]], list[list[int]], list[list[int]]]:
    """The ranks in groups that are in the same sets and on nodes of the same sets; for each set the groups
    that are in it, and those on one node with some rank of it.
    """
    sets_of: defaultdict[int, list[int]] = defaultdict(list)
    sets_on: defaultdict[int, list[int]] = defaultdict(list)
    for number, members in enumerate(sets):
        for rank in members:
            sets_of[rank].append(number)
        for node in {rank // RANKS_PER_NODE for rank in members}:
            sets_on[node].append(number)
    alike: defaultdict[tuple[tuple[int, ...], tuple[int, ...]], list[int]] = defaultdict(list)
    for rank in sorted(ranks):
        alike[tuple(sets_of[rank]), tuple(sets_on[rank // RANKS_PER_NODE])].append(rank)
    holding: list[list[int]] = [[] for _ in sets]
    near: list[list[int]] = [[] for _ in sets]
    for group, (is_in, is_near) in enumerate(alike):
        for number in is_in:
            holding[number].append(group)
        for number in is_near:
            near[number].append(group)
    return list(alike.values()), holding, near
