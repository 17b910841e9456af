"""Who of many ranks has the least to do, without looking at all of them each time."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping


class LeastLoaded:
    """The ranks of one set by their `loads`, which others change too, and which only grow."""

    def __init__(self, ranks: Iterable[int], loads: Mapping[int, int]) -> None:
        self._loads = loads
        self._heap = [(loads[rank], rank) for rank in sorted(ranks)]
        heapq.heapify(self._heap)

    def first(self) -> int:
        """The rank with the least load, of equal ones the lowest. What a heap knows of a load is at most what
        it is now, so the first rank whose load is still known is the least.
        """
        while True:
            known, rank = self._heap[0]
            if known == self._loads[rank]:
                return rank
            heapq.heapreplace(self._heap, (self._loads[rank], rank))
