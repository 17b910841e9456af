"""The grid of ranks that a user asks for."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from pp_export.core.errors import OptionError
from pp_export.core.words import counted
from pp_export.planning.runs import balance


@dataclass(frozen=True)
class Position:
    """Coordinates of one rank: pipeline stage, tensor part, expert part, and number of its block."""

    stage: int
    tensor: int
    expert: int
    block: int


@dataclass(frozen=True)
class RankGrid:
    """Stages of `blocks[stage]` blocks, each of `tensor` x `expert` ranks; the tensor axis varies fastest,
    the stage slowest, so that a stage is a run of consecutive ranks and stays on as few nodes as possible.
    """

    blocks: tuple[int, ...]
    tensor: int = 1
    expert: int = 1

    @property
    def world_size(self) -> int:
        return self._ends[-1] * self.tensor * self.expert

    @cached_property
    def _ends(self) -> tuple[int, ...]:
        """The number of blocks up to each stage's end, after 0."""
        return (0, *accumulate(self.blocks))

    def position(self, rank: int) -> Position:
        rest, tensor = divmod(rank, self.tensor)
        block, expert = divmod(rest, self.expert)
        stage = bisect_right(self._ends, block) - 1
        return Position(stage, tensor, expert, block - self._ends[stage])

    def stage_ranks(self, stage: int) -> range:
        size = self.tensor * self.expert
        return range(self._ends[stage] * size, self._ends[stage + 1] * size)


def choose_grid(
    world_size: int, pipeline: int | None, tensor: int | None, expert: int | None, unit_bytes: Sequence[int]
) -> RankGrid:
    """The grid of `world_size` ranks with the sizes that the user fixed; `unit_bytes` are those of the units
    (embedding, layers, head) in file order.

    A free number of stages takes all blocks, up to one stage per unit: ranks of different stages never wait
    for each other. Blocks that are left over go one by one to the stage with the most bytes per block.

    Raises OptionError where the ranks are no whole blocks, or fewer than the stages asked for, or where there
    are more stages than units.
    """
    size = (tensor or 1) * (expert or 1)
    num_blocks, rest = divmod(world_size, size)
    if rest or num_blocks < (pipeline or 1):
        told = (
            [f"a multiple of {size} ranks (tensor {tensor or 1} x expert {expert or 1})"] if size > 1 else []
        )
        if pipeline:
            stages = counted(pipeline, "pipeline stage")
            told.append(f"at least {counted(pipeline * size, 'rank')} for {stages}")
        raise OptionError(
            "the number of ranks does not fit the parallel sizes",
            expected=", ".join(told),
            got=counted(world_size, "rank"),
            advice="start another number of ranks, or leave --tensor-parallel, --expert-parallel and"
            " --pipeline-parallel out",
        )
    num_stages = pipeline or min(num_blocks, len(unit_bytes))
    if num_stages > len(unit_bytes):
        raise OptionError(
            "--pipeline-parallel is more than there are parts to deal out",
            expected=f"at most {len(unit_bytes)} (embedding, layers and head)",
            got=pipeline,
        )
    stage_bytes = [0] * num_stages
    for stage, num_bytes in zip(balance(unit_bytes, num_stages), unit_bytes):
        stage_bytes[stage] += num_bytes
    blocks = [1] * num_stages
    for _ in range(num_blocks - num_stages):
        neediest = max(range(num_stages), key=lambda stage: stage_bytes[stage] / blocks[stage])
        blocks[neediest] += 1
    return RankGrid(tuple(blocks), tensor or 1, expert or 1)
