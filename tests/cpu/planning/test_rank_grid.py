"""Claims of `pp_export.planning.rank_grid`: every rank has one place in the grid, and a chosen grid uses
all ranks, none of them in vain.
"""

from __future__ import annotations

import itertools

import pytest

from pp_export.core.errors import OptionError
from pp_export.planning.rank_grid import Position, RankGrid, choose_grid
from pp_export.planning.runs import balance

UNIT_BYTES = [5, 1, 1, 1, 4]


@pytest.mark.parametrize(
    "sizes", [((1,), 1, 1), ((2, 2, 2), 2, 2), ((1, 3, 2), 3, 1), ((2, 1), 1, 3), ((4,), 2, 3)]
)
def test_ranks_and_positions_are_one_to_one(sizes: tuple[tuple[int, ...], int, int]) -> None:
    """Ranks map one to one onto all positions, also where stages differ in size; a stage is a run of ranks,
    in it the tensor axis is fastest.
    """
    grid = RankGrid(*sizes)
    blocks, tensor, expert = sizes
    assert [grid.position(rank) for rank in range(grid.world_size)] == [
        Position(stage, t, e, block)
        for stage, num_blocks in enumerate(blocks)
        for block, e, t in itertools.product(range(num_blocks), range(expert), range(tensor))
    ]
    for stage in range(len(blocks)):
        assert list(grid.stage_ranks(stage)) == [
            rank for rank in range(grid.world_size) if grid.position(rank).stage == stage
        ]


def test_a_chosen_grid_uses_all_ranks_and_keeps_what_was_asked() -> None:
    """For every combination of asked sizes the grid has exactly the world's ranks in as many stages as it
    can, or the world is no multiple of a block or has too few for the stages, and is refused.
    """
    asked = (None, 1, 2, 3)
    num_refused = 0
    for world, pipeline, tensor, expert in itertools.product(range(1, 25), asked, asked, asked):
        block = (tensor or 1) * (expert or 1)
        if world % block or world < block * (pipeline or 1):
            num_refused += 1
            with pytest.raises(OptionError, match="does not fit the parallel sizes"):
                choose_grid(world, pipeline, tensor, expert, UNIT_BYTES)
            continue
        grid = choose_grid(world, pipeline, tensor, expert, UNIT_BYTES)
        assert grid.world_size == world
        assert len(grid.blocks) == (pipeline or min(5, world // block))
        assert (grid.tensor, grid.expert) == (tensor or 1, expert or 1)
    assert num_refused > 100


@pytest.mark.parametrize("pipeline", [None, 3])
def test_blocks_left_over_go_where_the_bytes_are(pipeline: int | None) -> None:
    """Of all ways to deal blocks to stages, none gives the busiest stage fewer bytes per block."""
    num_stages = pipeline or len(UNIT_BYTES)
    stage_bytes = [0] * num_stages
    for stage, num_bytes in zip(balance(UNIT_BYTES, num_stages), UNIT_BYTES):
        stage_bytes[stage] += num_bytes
    for num_blocks in range(num_stages, 14):
        found = choose_grid(2 * num_blocks, pipeline, 2, None, UNIT_BYTES).blocks
        ways = itertools.product(range(1, num_blocks + 1), repeat=num_stages)
        best = min(max(map(_ratio, stage_bytes, way)) for way in ways if sum(way) == num_blocks)
        assert max(map(_ratio, stage_bytes, found)) == best


def _ratio(num_bytes: int, num_blocks: int) -> float:
    return num_bytes / num_blocks


def test_a_world_that_does_not_fit_names_both_numbers() -> None:
    """The refusal names the grid that was asked for and the number of ranks there are."""
    with pytest.raises(OptionError) as caught:
        choose_grid(7, 2, 2, None, UNIT_BYTES)
    assert "a multiple of 2 ranks (tensor 2 x expert 1), at least 4 ranks for 2 pipeline stages" in str(
        caught.value
    )
    assert "7 ranks" in str(caught.value)


def test_more_stages_than_units_are_refused() -> None:
    """No stage may be empty: more stages than units to export are refused, naming the limit."""
    with pytest.raises(OptionError, match="more than there are parts") as caught:
        choose_grid(6, 6, None, None, UNIT_BYTES)
    assert "at most 5" in str(caught.value)
