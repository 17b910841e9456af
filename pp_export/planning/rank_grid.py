"""The export's own grid of ranks."""

from __future__ import annotations

from dataclasses import dataclass

from pp_export.core.errors import OptionError


@dataclass(frozen=True)
class Position:
    """Coordinates of one rank: pipeline stage, tensor part, expert part, and replica (data) number."""

    stage: int
    tensor: int
    expert: int
    data: int


@dataclass(frozen=True)
class RankGrid:
    """`pipeline` stages of `tensor` x `expert` x `data` ranks each; the tensor axis varies fastest, the stage
    slowest, so that a stage is a run of consecutive ranks and stays on as few nodes as possible.
    """

    pipeline: int
    tensor: int
    expert: int
    data: int

    @property
    def world_size(self) -> int:
        return self.pipeline * self.stage_size

    @property
    def stage_size(self) -> int:
        return self.tensor * self.expert * self.data

    def position(self, rank: int) -> Position:
        rest, tensor = divmod(rank, self.tensor)
        rest, expert = divmod(rest, self.expert)
        stage, data = divmod(rest, self.data)
        return Position(stage, tensor, expert, data)

    def stage_ranks(self, stage: int) -> range:
        return range(stage * self.stage_size, (stage + 1) * self.stage_size)


def choose_grid(
    world_size: int, pipeline: int | None, tensor: int | None, expert: int | None, num_units: int
) -> RankGrid:
    """The grid of `world_size` ranks with the sizes that the user fixed.

    A free number of stages takes all ranks that the fixed axes leave, up to one stage per unit (embedding,
    layer, head): ranks of different stages never wait for each other. What is left over shares the reading in
    its stage.
    """
    fixed = (pipeline or 1) * (tensor or 1) * (expert or 1)
    if world_size % fixed:
        raise OptionError(
            "the world size is not divided by the grid",
            expected=f"a multiple of {pipeline or 1} pipeline x {tensor or 1} tensor x {expert or 1} expert",
            got=f"{world_size} ranks",
            advice="start another number of ranks, or change the parallel sizes",
        )
    left = world_size // fixed
    if pipeline is None:
        pipeline = max(size for size in range(1, min(left, num_units) + 1) if left % size == 0)
        left //= pipeline
    if pipeline > num_units:
        raise OptionError(
            "there are more pipeline stages than units to export",
            expected=f"at most {num_units} (embedding, layers, head)",
            got=pipeline,
        )
    if tensor is None and expert is None:
        tensor, left = left, 1
    return RankGrid(pipeline, tensor or 1, expert or 1, left)
