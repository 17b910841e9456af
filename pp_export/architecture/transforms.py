"""The closed list of transforms: how one Megatron tensor becomes one or more Hugging Face tensors.

A transform is geometry, not arithmetic: a list of moves, each a box of the source that lands at an offset of
an output. So shapes, bytes and completeness are known before anything is read, and every byte is copied once,
straight to its place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pp_export.core.errors import AccountingError
from pp_export.core.tensors import Box, Shape, check_coverage, whole

Sizes = Mapping[str, int]


@dataclass(frozen=True)
class Move:
    """The source's `box` goes to output `role`, beginning at `target`; `role` is "" for a single output."""

    role: str
    box: Box
    target: Shape


@dataclass(frozen=True)
class Transform:
    """`moves(shape, sizes)` lists the moves of a source of `shape`; raises AccountingError where it does not
    fit.

    `num_parts` is the number of equal blocks along dim 0 that tensor parallelism splits each on its own (2
    for a fused gate and up projection). `drops` says that some rows (padding) go nowhere.
    """

    name: str
    roles: tuple[str, ...]
    moves: Callable[[Shape, Sizes], list[Move]]
    num_parts: int = 1
    drops: bool = False

    def outputs(self, moves: list[Move]) -> dict[str, Shape]:
        """Shape of each output."""
        shapes: dict[str, Shape] = {}
        for move in moves:
            end = tuple(t + n for t, n in zip(move.target, move.box.shape))
            shapes[move.role] = tuple(map(max, shapes.get(move.role, end), end))
        return shapes

    def check(self, shape: Shape, moves: list[Move]) -> None:
        """Raise unless every element of the source goes to exactly one place, and every place is filled."""
        if not self.drops:
            check_coverage(self.name, shape, [move.box for move in moves])
        for role, output in self.outputs(moves).items():
            filled = [Box(move.target, move.box.shape) for move in moves if move.role == role]
            check_coverage(f"{self.name} {role}", output, filled)


def _num_rows(shape: Shape) -> int:
    return shape[0] if shape else 0


def _rows(role: str, shape: Shape, begin: int, count: int, target: int = 0) -> Move:
    rest = shape[1:]
    zeros = (0,) * len(rest)
    return Move(role, Box((begin, *zeros), (count, *rest)), (target, *zeros))


def _copy(shape: Shape, sizes: Sizes) -> list[Move]:
    return [Move("", whole(shape), (0,) * len(shape))]


def _vocabulary(shape: Shape, sizes: Sizes) -> list[Move]:
    """Rows beyond the true vocabulary are padding to a multiple that TP divides (megatron's
    `padded_vocab_size`).
    """
    if not sizes["vocab_size"] <= _num_rows(shape):
        raise _misfit("vocabulary", shape, f"at least vocab_size = {sizes['vocab_size']} rows")
    return [_rows("", shape, 0, sizes["vocab_size"])]


def _split_qkv(shape: Shape, sizes: Sizes) -> list[Move]:
    """Rows come per query group: its queries, its key, its value (megatron/core/transformer/attention.py)."""
    heads, groups, dim = (sizes[size] for size in ("num_attention_heads", "num_query_groups", "head_dim"))
    num_rows = (heads + 2 * groups) * dim
    if _num_rows(shape) != num_rows:
        raise _misfit("split_qkv", shape, f"({heads} heads + 2 x {groups} groups) x {dim} = {num_rows} rows")
    if groups < 1 or heads % groups:
        raise _misfit("split_qkv", shape, f"{heads} heads in equal groups, not {groups}")
    queries = heads // groups * dim
    step = queries + 2 * dim
    return [
        move
        for group in range(groups)
        for move in (
            _rows("q", shape, group * step, queries, group * queries),
            _rows("k", shape, group * step + queries, dim, group * dim),
            _rows("v", shape, group * step + queries + dim, dim, group * dim),
        )
    ]


def _split_glu(shape: Shape, sizes: Sizes) -> list[Move]:
    """All rows of the gate, then all rows of the up projection, whatever the TP size that wrote them."""
    if not shape or shape[0] % 2:
        raise _misfit("split_glu", shape, "an even number of rows")
    half = shape[0] // 2
    return [_rows("gate", shape, 0, half), _rows("up", shape, half, half)]


def _misfit(name: str, shape: Shape, expected: str) -> AccountingError:
    return AccountingError(f"{name} does not fit the tensor", expected=expected, got=f"shape {list(shape)}")


TRANSFORMS = {
    transform.name: transform
    for transform in (
        Transform("copy", ("",), _copy),
        Transform("vocabulary", ("",), _vocabulary, drops=True),
        Transform("split_qkv", ("q", "k", "v"), _split_qkv),
        Transform("split_glu", ("gate", "up"), _split_glu, num_parts=2),
    )
}
