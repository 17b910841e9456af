"""Consecutive runs of about equal weight."""

from __future__ import annotations

from collections.abc import Sequence


def balance(weights: Sequence[int], num_stages: int) -> list[int]:
    """The stage of every unit: consecutive runs, none empty, the heaviest as light as possible."""
    low, high = max(weights), sum(weights)
    while low < high:
        middle = (low + high) // 2
        if max(_fill(weights, num_stages, middle)) < num_stages:
            high = middle
        else:
            low = middle + 1
    return _fill(weights, num_stages, low)


def _fill(weights: Sequence[int], num_stages: int, capacity: int) -> list[int]:
    """Stages filled up to `capacity` in turn; a new one also begins where each unit left is needed for a
    stage left.
    """
    stages: list[int] = []
    stage = load = 0
    for position, weight in enumerate(weights):
        stages_left = num_stages - 1 - stage
        if position and (load + weight > capacity or len(weights) - position <= stages_left):
            stage, load = stage + 1, 0
        load += weight
        stages.append(stage)
    return stages
