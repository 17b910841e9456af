"""Consecutive runs of about equal weight."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Iterable, Sequence


def balance(weights: Sequence[int], num_runs: int) -> list[int]:
    """The run of every weight: consecutive runs, none empty, the heaviest as light as possible, and those
    beside it as even as that allows. `num_runs` is at most the number of weights.
    """
    most = max(1, *weights)
    ends = _ends(weights)
    if _is_enough(ends, num_runs, most):
        low, high = 1, most
    else:
        low, high = most + 1, most + sum(weights) // num_runs + 1
    while low < high:
        middle = (low + high) // 2
        if _is_enough(ends if middle > most else _ends(_clipped(weights, middle)), num_runs, middle):
            high = middle
        else:
            low = middle + 1
    return _fill(_clipped(weights, low), num_runs, low)


def _ends(weights: Iterable[int]) -> list[int]:
    """What the weights up to each position add up to, after 0."""
    return list(itertools.accumulate(weights, initial=0))


def _is_enough(ends: Sequence[int], num_runs: int, capacity: int) -> bool:
    """Whether so many runs hold weights that end at `ends`, none of them more than `capacity`. Takes as many
    steps as runs.
    """
    at, last = 0, len(ends) - 1
    for _ in range(num_runs):
        at = bisect_right(ends, ends[at] + capacity, at) - 1
        if at == last:
            return True
    return False


def heaviest(weights: Sequence[int], runs: Sequence[int]) -> int:
    """The weight of the heaviest of consecutive runs."""
    loads = [0] * (runs[-1] + 1)
    for weight, run in zip(weights, runs):
        loads[run] += weight
    return max(loads)


def _clipped(weights: Sequence[int], capacity: int) -> list[int]:
    """A weight that is too heavy for any run fills one: how heavy it is must not make the others uneven."""
    return [min(weight, capacity) for weight in weights]


def _runs_needed(weights: Sequence[int], capacity: int) -> list[int]:
    """How many runs of at most `capacity` the weights from each position on need; 0 behind the last."""
    ends = _ends(weights)
    needed = [0] * (len(weights) + 1)
    end = len(weights)
    for begin in reversed(range(len(weights))):
        while ends[end] - ends[begin] > capacity:
            end -= 1
        needed[begin] = 1 + needed[end]
    return needed


def _fill(weights: Sequence[int], num_runs: int, capacity: int) -> list[int]:
    """Runs of at most `capacity`, each filled up to the mean of what is left as far as the runs after it
    still suffice.
    """
    needed, left = _runs_needed(weights, capacity), sum(weights)
    runs: list[int] = []
    run = load = 0
    for position, weight in enumerate(weights):
        runs_after = num_runs - 1 - run
        is_full = load + weight > capacity
        is_fair = needed[position] <= runs_after and (2 * load + weight) * (runs_after + 1) > 2 * (
            load + left
        )
        if position and (is_full or is_fair or len(weights) - position <= runs_after):
            run, load = run + 1, 0
        load += weight
        left -= weight
        runs.append(run)
    return runs
