"""Claims of `pp_export.planning.runs`: consecutive runs, as even as they can be."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from pp_export.planning.runs import balance, heaviest


@settings(deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=8), st.data())
def test_balance_is_as_good_as_trying_everything(weights: list[int], data: st.DataObject) -> None:
    """Runs are consecutive and none is empty, and the heaviest is as light as the best of all divisions."""
    num_runs = data.draw(st.integers(1, len(weights)))
    runs = balance(weights, num_runs)
    assert runs == sorted(runs)
    assert set(runs) == set(range(num_runs))
    loads = [sum(w for w, r in zip(weights, runs) if r == run) for run in range(num_runs)]
    best = min(
        max(sum(weights[a:b]) for a, b in itertools.pairwise((0, *cuts, len(weights))))
        for cuts in itertools.combinations(range(1, len(weights)), num_runs - 1)
    )
    assert max(loads) == best
    assert heaviest(weights, runs) == best


def test_one_heavy_weight_leaves_the_others_even() -> None:
    """Where one weight is heavier than all else, the other runs are equal and not filled up to it."""
    for weights in ([9, *[1] * 8], [*[1] * 8, 9], [1, 1, 1, 1, 9, 1, 1, 1, 1]):
        runs = balance(weights, 5)
        loads = [sum(w for w, r in zip(weights, runs) if r == run) for run in range(5)]
        assert sorted(loads) == [2, 2, 2, 2, 9]
