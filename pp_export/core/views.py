"""Views of tensors: which elements, and in which order, told as torch tells it (offset, shape, strides).

A view says where a stored tensor lies in its storage, and where a transform takes values from and puts them.
It is geometry only: whether views fill a tensor exactly is proved on shapes, before a byte is read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import NamedTuple

from pp_export.core.errors import ExportError
from pp_export.core.tensors import Box, Shape, Span, check_spans, dense_strides


class View(NamedTuple):
    """Element `i` of the view is element `offset + sum(i * strides)` of what it is a view of.

    All numbers count elements. `View.of(shape)` is a dense tensor in C order, seen as it is.
    """

    offset: int
    shape: Shape
    strides: Shape

    @classmethod
    def of(cls, shape: Shape) -> View:
        """All of a dense tensor."""
        return cls(0, shape, dense_strides(shape))

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def is_dense(self) -> bool:
        """Whether the elements lie in C order one after another; dims of size 1 may have any stride."""
        pairs = [(n, stride) for n, stride in zip(self.shape, self.strides) if n != 1]
        return tuple(stride for _, stride in pairs) == dense_strides(tuple(n for n, _ in pairs))

    def narrow(self, dim: int, start: int, count: int, step: int = 1) -> View:
        """`count` elements along `dim`: `start`, `start + step`, ..."""
        return View(
            self.offset + start * self.strides[dim],
            (*self.shape[:dim], count, *self.shape[dim + 1 :]),
            (*self.strides[:dim], self.strides[dim] * step, *self.strides[dim + 1 :]),
        )

    def select(self, dim: int, index: int) -> View:
        """Element `index` along `dim`, which goes away."""
        offset = self.offset + index * self.strides[dim]
        return View(offset, _without(self.shape, dim), _without(self.strides, dim))

    def permute(self, dims: Sequence[int]) -> View:
        """The dims in another order, as torch's `permute`."""
        return View(self.offset, tuple(self.shape[d] for d in dims), tuple(self.strides[d] for d in dims))

    def transpose(self) -> View:
        """The two last dims swapped."""
        outer = range(len(self.shape) - 2)
        return self.permute([*outer, len(self.shape) - 1, len(self.shape) - 2])

    def reshape(self, shape: Shape) -> View:
        """The same elements in another shape; the view must be dense. Raises ValueError otherwise."""
        if not self.is_dense or math.prod(shape) != self.num_elements:
            raise ValueError(f"strides {self.strides} of shape {self.shape} can't be seen as shape {shape}")
        return View(self.offset, shape, dense_strides(shape))

    def stacked(self, at: Shape, stack: Shape, shape: Shape) -> View:
        """A view of a tensor of `shape`, in number `at` of a `stack` of such tensors over new leading
        dims.
        """
        number = sum(index * stride for index, stride in zip(at, dense_strides(stack)))
        return View(self.offset + number * math.prod(shape), self.shape, self.strides)


@dataclass(frozen=True)
class Overlap:
    """What a box of a tensor holds of a view of that tensor.

    An array of the box's values, indexed by `index`, has the common elements; its dims, taken in the order
    `order`, are the `dims` of the view that are no single elements, and behind them dims of size 1. In the
    view they begin at `begin` and are of `shape`.
    """

    index: tuple[slice, ...]
    order: tuple[int, ...]
    dims: tuple[int, ...]
    begin: Shape
    shape: Shape

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)

    def target(self, view: View) -> View:
        """The same elements of another view with the dims of the first."""
        offset = view.offset + sum(at * stride for at, stride in zip(self.begin, view.strides))
        return View(offset, self.shape, view.strides)

    def runs(self, box: Shape, target: View) -> Runs:
        """The same as runs: from a dense array of the values of a box of shape `box` to `target`."""
        strides = dense_strides(box)
        begin = sum(cut.start * stride for cut, stride in zip(self.index, strides))
        dims = [
            (self.shape[dim], self.index[axis].step * strides[axis], target.strides[dim])
            for dim, axis in zip(self.dims, self.order)
            if self.shape[dim] != 1
        ]
        length = 1
        while dims and dims[-1][1:] == (length, length):
            length *= dims.pop()[0]
        return Runs(begin, target.offset, length, tuple(dims))


class Run(NamedTuple):
    """Elements that lie one after another in two places, from number `begin` of one and `at` of the other."""

    begin: int
    at: int
    length: int


@dataclass(frozen=True)
class Runs:
    """Runs of one `length`, the first from `begin` to `at`; each of the `dims` repeats them: how often, and
    how far apart in either place.
    """

    begin: int
    at: int
    length: int
    dims: tuple[tuple[int, int, int], ...]

    @property
    def count(self) -> int:
        return math.prod(count for count, _, _ in self.dims)

    def __iter__(self) -> Iterator[Run]:
        for position in product(*(range(count) for count, _, _ in self.dims)):
            begin = sum(index * step for index, (_, step, _) in zip(position, self.dims))
            at = sum(index * step for index, (_, _, step) in zip(position, self.dims))
            yield Run(self.begin + begin, self.at + at, self.length)


def overlap(view: View, shape: Shape, box: Box) -> Overlap | None:
    """What `box` holds of `view`, both of a tensor of `shape`; None where nothing."""
    begin, counts = [0] * len(view.shape), [1] * len(view.shape)
    index: list[slice] = []
    axis_of: dict[int, int] = {}
    spans, dims = _walk(view, shape)
    for axis, (span, dim, low, size) in enumerate(zip(spans, dims, box.offset, box.shape)):
        first = max(0, -(-(low - span.begin) // span.step))
        last = min(span.count, -(-(low + size - span.begin) // span.step))
        if first >= last:
            return None
        at = span.begin + first * span.step - low
        index.append(slice(at, at + (last - first - 1) * span.step + 1, span.step))
        if dim is not None:
            begin[dim], counts[dim], axis_of[dim] = first, last - first, axis
    walked = sorted(axis_of)
    order = [axis_of[dim] for dim in walked]
    order += [axis for axis in range(len(shape)) if axis not in order]
    return Overlap(tuple(index), tuple(order), tuple(walked), tuple(begin), tuple(counts))


def check_filled(name: str, shape: Shape, views: Sequence[View]) -> None:
    """Raise unless `views` reach every element of a tensor of `shape` exactly once: CheckpointError where
    they don't, ExportError where one does not go along the tensor's dims.
    """
    check_spans(name, shape, [_walk(view, shape)[0] for view in views])


@lru_cache(maxsize=1 << 16)
def _walk(view: View, shape: Shape) -> tuple[tuple[Span, ...], tuple[int | None, ...]]:
    """How a view goes through a dense tensor of `shape`: along each dim of the tensor its span, and the dim
    of the view that goes there (None where the view stays).

    Every dim of the view must go along one dim of the tensor, and no two along the same: what a box of the
    tensor holds of the view is then a box of the view too. So a transform says splits of one dim as several
    moves.
    """
    steps, rest = dense_strides(shape), view.offset
    spans: list[Span] = []
    dims: list[int | None] = [None] * len(shape)
    for step in steps:
        start, rest = divmod(rest, step)
        spans.append(Span(start, 1))
    for dim, (count, stride) in enumerate(zip(view.shape, view.strides)):
        if count == 1:
            continue
        for axis, (step, size) in enumerate(zip(steps, shape)):
            begin, jump = spans[axis].begin, stride // step
            fits = jump > 0 and stride % step == 0 and begin + (count - 1) * jump < size
            if fits and size > 1 and dims[axis] is None:
                spans[axis], dims[axis] = Span(begin, count, jump), dim
                break
        else:
            raise ExportError(
                "a view does not go along the dims of its tensor, one dim for each of them",
                expected=f"a view of shape {list(shape)}",
                got=f"offset {view.offset}, shape {list(view.shape)}, strides {list(view.strides)}",
            )
    return tuple(spans), tuple(dims)


def _without(values: Shape, dim: int) -> Shape:
    return (*values[:dim], *values[dim + 1 :])
