"""Boxes of tensors: what a rank holds (slices), without and with values (slices).

Everything speaks *canonical names*: Megatron's own parameter names with global layer and expert numbers, for
example `decoder.layers.3.mlp.experts.7.linear_fc1.weight`, whatever the layout that stored them.

There can be millions of them, so they are tuples with names: made, compared and hashed several times as fast
as dataclasses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from pp_export.core.dtypes import DType
from pp_export.core.errors import CheckpointError
from pp_export.core.words import counted

Shape = tuple[int, ...]

REFERENCE = "reference:"
"""Before the Hugging Face names of tensors that come from the reference: these are their canonical names."""

_MAX_REMEMBERED_BOXES = 64
# Boxes of a grid have a cell each; crooked ones in several dims are cut into each other's pieces.
_MAX_CELLS, _MAX_CELLS_PER_PART = 1_000_000, 100


class Box(NamedTuple):
    """A rectangular part of a tensor: elements [offset[d], offset[d] + shape[d]) in every dim d."""

    offset: Shape
    shape: Shape

    @property
    def volume(self) -> int:
        return math.prod(self.shape)


class Slice(NamedTuple):
    """A box of the canonical tensor `name`, without values.

    Its values lie in stored item number `item`, from byte `begin` of that item's data: contiguous and in C
    order, or `strides` elements apart. Readers say what an item is; nothing else needs to know.
    """

    name: str
    box: Box
    dtype: DType
    item: int
    begin: int = 0
    strides: Shape | None = None

    @property
    def num_bytes(self) -> int:
        return math.prod(self.box.shape) * self.dtype.itemsize

    def part(self, row: int, count: int, *, dim: int = 0, at: int | None = None) -> Slice:
        """`count` rows along `dim`, from the slice's own row number `row`; they lie at row `at` of the tensor
        (default: where the box says).
        """
        offset, shape = self.box.offset, self.box.shape
        step = self.strides[dim] if self.strides is not None else math.prod(shape[dim + 1 :])
        box = Box(_replace(offset, dim, offset[dim] + row if at is None else at), _replace(shape, dim, count))
        begin = self.begin + row * step * self.dtype.itemsize
        return Slice(self.name, box, self.dtype, self.item, begin, self.strides)

    def rows(self, max_bytes: int) -> list[Slice]:
        """This slice cut into consecutive slices of at most `max_bytes` (at least one row each), in the order
        of its rows.
        """
        num_bytes = self.num_bytes
        if num_bytes <= max_bytes:
            return [self]
        dim = next((d for d, n in enumerate(self.box.shape) if n > 1), None)
        if dim is None:
            return [self]
        length = self.box.shape[dim]
        step = max(1, max_bytes // (num_bytes // length))
        return [self.part(row, min(step, length - row), dim=dim) for row in range(0, length, step)]


class TensorSpec(NamedTuple):
    """Shape and element type of a whole tensor."""

    shape: Shape
    dtype: DType

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{self.dtype.torch_name}{list(self.shape)}"


@dataclass(frozen=True)
class Span:
    """Indices along one dim: `count` of them from `begin` on, `step` apart."""

    begin: int
    count: int
    step: int = 1

    @property
    def end(self) -> int:
        """One more than the last index."""
        return self.begin + (self.count - 1) * self.step + 1


def dense_strides(shape: Shape) -> Shape:
    """The strides, in elements, of a tensor of `shape` whose values lie in C order one after another."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


def check_coverage(name: str, shape: Shape, boxes: Sequence[Box]) -> None:
    """Raise CheckpointError unless `boxes` fill a tensor of `shape` exactly, without overlap or overhang."""
    if any(len(box.shape) != len(shape) for box in boxes):
        raise CheckpointError(
            "stored slices have another number of dims than their tensor",
            where={"tensor": name},
            expected=len(shape),
        )
    if len(boxes) <= _MAX_REMEMBERED_BOXES and _is_filled(shape, tuple(boxes)):
        return
    check_spans(name, shape, [tuple(map(Span, box.offset, box.shape)) for box in boxes])


@lru_cache(maxsize=1 << 10)
def _is_filled(shape: Shape, boxes: tuple[Box, ...]) -> bool:
    """Whether the boxes fill the tensor exactly: found out once for all experts that are cut alike."""
    try:
        check_spans("", shape, [tuple(map(Span, *box)) for box in boxes])
    except CheckpointError:
        return False
    return True


def check_spans(name: str, shape: Shape, parts: Sequence[Sequence[Span]]) -> None:
    """Raise CheckpointError unless `parts`, each a span along every dim, fill a tensor of `shape` exactly.

    Every dim is cut where some span begins or ends, and into as many residues as its steps need; then each
    part is a set of grid cells, and no cell may come twice.
    """
    for part in parts:
        if any(span.count < 1 or span.begin < 0 or span.end > n for span, n in zip(part, shape)):
            raise CheckpointError(
                "a stored slice reaches outside its tensor",
                where={"tensor": name},
                expected=f"within {shape}",
                got=", ".join(f"[{span.begin}, {span.end})" for span in part),
            )
    stored = sum(math.prod(span.count for span in part) for part in parts)
    full = math.prod(shape)
    if stored > full or _num_cells(parts) > _MAX_CELLS + _MAX_CELLS_PER_PART * len(parts):
        more = ", some twice" if stored > full else ", cut into too many pieces"
        raise _not_filled(name, shape, f"{stored} elements in {counted(len(parts), 'slice')}{more}")
    cells = _cells(len(shape), parts)
    seen = len(set(cells))
    if seen != len(cells) or stored != full:
        more = ", some twice" if seen != len(cells) else ""
        raise _not_filled(name, shape, f"{stored} elements in {counted(len(parts), 'slice')}{more}")


def _not_filled(name: str, shape: Shape, got: str) -> CheckpointError:
    return CheckpointError(
        "the stored slices do not fill the tensor exactly",
        where={"tensor": name},
        expected=f"{math.prod(shape)} elements, each once, for shape {list(shape)}",
        got=got,
        advice="the checkpoint lacks a rank's files or mixes two saves; save it again",
    )


def _num_cells(parts: Sequence[Sequence[Span]]) -> int:
    """How many cells all parts have together."""
    counts = [1] * len(parts)
    for dim in range(len(parts[0]) if parts else 0):
        cuts = sorted({cut for part in parts for cut in (part[dim].begin, part[dim].end)})
        number = {cut: i for i, cut in enumerate(cuts)}
        modulus = math.lcm(*(part[dim].step for part in parts))
        for i, part in enumerate(parts):
            counts[i] *= (number[part[dim].end] - number[part[dim].begin]) * (modulus // part[dim].step)
    return sum(counts)


def _cells(num_dims: int, parts: Sequence[Sequence[Span]]) -> list[tuple[tuple[int, int], ...]]:
    """The cells of all parts. A cell is (interval, residue) in every dim; empty ones are left out."""
    cells: list[list[tuple[tuple[int, int], ...]]] = [[()] for _ in parts]
    for dim in range(num_dims):
        cuts = sorted({cut for part in parts for cut in (part[dim].begin, part[dim].end)})
        number = {cut: i for i, cut in enumerate(cuts)}
        modulus = math.lcm(*(part[dim].step for part in parts))
        for of_part, part in zip(cells, parts):
            span = part[dim]
            along = [
                (interval, residue)
                for interval in range(number[span.begin], number[span.end])
                for residue in range(span.begin % span.step, modulus, span.step)
                if cuts[interval] + (residue - cuts[interval]) % modulus < cuts[interval + 1]
            ]
            of_part[:] = [(*cell, here) for cell in of_part for here in along]
    return [cell for of_part in cells for cell in of_part]


def _replace(values: Shape, position: int, value: int) -> Shape:
    return (*values[:position], value, *values[position + 1 :])
