"""Moves elements of any type from one strided place in memory to another. Bits only: a type is its size."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from pp_export.core.tensors import Shape
from pp_export.core.views import View

Elements = npt.NDArray[Any]

_WORDS = {size: np.dtype(f"u{size}") for size in (1, 2, 4, 8)}
_BLOCK = 128


def of(memory: memoryview, itemsize: int, shape: Shape) -> Elements:
    """A dense tensor that lies at the beginning of `memory`."""
    return seen(memory, itemsize, View.of(shape))


def seen(memory: memoryview, itemsize: int, view: View) -> Elements:
    """The elements of a view of what lies in `memory`; raises ValueError where it reaches beyond."""
    strides = tuple(stride * itemsize for stride in view.strides)
    return np.ndarray(view.shape, _WORDS[itemsize], memory, view.offset * itemsize, strides)


def copy(source: Elements, target: Elements) -> None:
    """Fill `target` from `source`, both of one shape.

    Where they don't lie along the same dim (a transposition), block by block: both sides of a block stay in
    the cache, which is twice as fast.
    """
    dims = (_fastest(source), _fastest(target))
    if dims[0] == dims[1]:
        np.copyto(target, source)
        return
    blocks = (range(0, source.shape[dim], _BLOCK) for dim in dims)
    for begins in product(*blocks):
        index = [slice(None)] * source.ndim
        for dim, begin in zip(dims, begins):
            index[dim] = slice(begin, begin + _BLOCK)
        np.copyto(target[tuple(index)], source[tuple(index)])


def _fastest(values: Elements) -> int:
    """The dim along which elements lie nearest to each other."""
    dims = [dim for dim in range(values.ndim) if values.shape[dim] > 1]
    return min(dims, key=lambda dim: abs(values.strides[dim]), default=0)
