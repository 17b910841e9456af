"""Claims of `pp_export.planning.rank_grid`: every rank has one place in the grid, and a chosen grid uses
all ranks.
"""

from __future__ import annotations

import itertools

import pytest

from pp_export.core.errors import OptionError
from pp_export.planning.rank_grid import Position, RankGrid, choose_grid


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (3, 2, 2, 2), (2, 3, 1, 2), (2, 1, 3, 2), (1, 2, 3, 4)])
def test_ranks_and_positions_are_one_to_one(sizes: tuple[int, int, int, int]) -> None:
    """Ranks map one to one onto all positions; a stage is a run of ranks, in it the tensor axis is
    fastest.
    """
    grid = RankGrid(*sizes)
    positions = [grid.position(rank) for rank in range(grid.world_size)]
    pipeline, tensor, expert, data = sizes
    expected = [
        Position(s, t, e, d)
        for s, d, e, t in itertools.product(range(pipeline), range(data), range(expert), range(tensor))
    ]
    assert positions == expected
    for stage in range(pipeline):
        assert [rank for rank, place in enumerate(positions) if place.stage == stage] == list(
            grid.stage_ranks(stage)
        )


def test_a_chosen_grid_uses_all_ranks_and_keeps_what_was_asked() -> None:
    """For every combination of asked sizes the grid has exactly the world's ranks, or the world is
    refused.
    """
    asked = (None, 1, 2, 3)
    num_refused = 0
    for world, pipeline, tensor, expert in itertools.product(range(1, 25), asked, asked, asked):
        fixed = (pipeline or 1) * (tensor or 1) * (expert or 1)
        if world % fixed:
            num_refused += 1
            with pytest.raises(OptionError, match="not divided by the grid"):
                choose_grid(world, pipeline, tensor, expert, num_units=5)
            continue
        grid = choose_grid(world, pipeline, tensor, expert, num_units=5)
        assert grid.world_size == world
        assert grid.pipeline <= 5
        assert pipeline in (None, grid.pipeline)
        assert tensor in (None, grid.tensor)
        assert expert in (None, grid.expert)
    assert num_refused > 100


def test_a_free_grid_takes_stages_first() -> None:
    """Without wishes, ranks become stages, at most one per unit, and what is left over splits tensors."""
    assert choose_grid(4, None, None, None, num_units=8) == RankGrid(4, 1, 1, 1)
    assert choose_grid(12, None, None, None, num_units=5) == RankGrid(4, 3, 1, 1)
    assert choose_grid(7, None, None, None, num_units=5) == RankGrid(1, 7, 1, 1)
    assert choose_grid(8, 2, None, 2, num_units=5) == RankGrid(2, 1, 2, 2)


def test_a_world_that_does_not_divide_names_both_numbers() -> None:
    """The refusal names the grid that was asked for and the number of ranks there are."""
    with pytest.raises(OptionError) as caught:
        choose_grid(6, 2, 2, None, num_units=8)
    assert "2 pipeline x 2 tensor x 1 expert" in str(caught.value)
    assert "6 ranks" in str(caught.value)


def test_more_stages_than_units_are_refused() -> None:
    """No stage may be empty: more stages than units to export are refused, naming the limit."""
    with pytest.raises(OptionError, match="more pipeline stages than units") as caught:
        choose_grid(6, 6, None, None, num_units=5)
    assert "at most 5" in str(caught.value)
