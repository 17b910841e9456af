"""Claims of `pp_export.planning.least_loaded`: it answers as a look at all ranks would."""

from __future__ import annotations

import random
from collections import defaultdict

import pytest

from pp_export.planning.least_loaded import LeastLoaded


@pytest.mark.parametrize("seed", range(20))
def test_the_first_is_the_least(seed: int) -> None:
    """Of sets that share ranks and loads, each gives the rank that a search gives, whoever gets more."""
    numbers = random.Random(seed)
    loads: defaultdict[int, int] = defaultdict(int)
    sets = [numbers.sample(range(12), numbers.randint(1, 12)) for _ in range(4)]
    found = [LeastLoaded(ranks, loads) for ranks in sets]
    for _ in range(300):
        at = numbers.randrange(4)
        first = found[at].first()
        assert first == min(sets[at], key=lambda rank: (loads[rank], rank))
        loads[numbers.choice([first, numbers.randrange(12)])] += numbers.randint(0, 5)
