"""Consecutive runs of about equal weight."""

from __future__ import annotations

import itertools
from collections.abc import Sequence


def balance(weights: Sequence[int], num_runs: int) -> list[int]:
    """The run of every weight: consecutive runs, none empty, the heaviest as light as possible, and those
    beside it as even as that allows. `num_runs` is at most the number of weights.
    """
    low, high = 1, max(1, sum(weights))
    while low < high:
        middle = (low + high) // 2
        if _runs_needed(_clipped(weights, middle), middle)[0] <= num_runs:
            high = middle
        else:
            low = middle + 1
    return _fill(_clipped(weights, low), num_runs, low)


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
    ends = [0, *itertools.accumulate(weights)]
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
