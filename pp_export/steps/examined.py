"""Values of a tensor, looked at step by step: their digest, and whether training can have meant them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xxhash

from pp_export.core import elements
from pp_export.core.dtypes import DType
from pp_export.shards.finite import count_not_finite
from pp_export.verification import elements as numbered

_BLOCK_BYTES = 1 << 20
"""So many are made numbers of at once, which takes eight times as much in types of one byte."""


@dataclass(frozen=True)
class Seen:
    """What was seen of a tensor's values. `digest` is the XXH3-128 of all of them in C order."""

    digest: str
    num_nan: int
    num_infinite: int
    is_zero: bool
    is_constant: bool


class ValuesExaminer:
    """Takes the values of one tensor of `dtype` in steps of whole elements, one after another."""

    def __init__(self, dtype: DType) -> None:
        self._dtype = dtype
        self._digest = xxhash.xxh3_128()
        self._first: np.unsignedinteger | None = None
        self._num_elements = self._num_nan = self._num_infinite = 0
        self._is_zero = self._is_constant = True

    def take(self, memory: memoryview) -> None:
        """The next values."""
        self._digest.update(memory)
        size = self._dtype.itemsize
        values = elements.of(memory, size, (len(memory) // size,))
        if not values.size:
            return
        if self._first is None:
            self._first = values[0]
        self._num_elements += values.size
        if self._is_constant:
            self._is_constant = bool((values == self._first).all())
        if self._is_zero:
            # Zeros have a sign in types of floating point, and no other bit.
            kept = (1 << 8 * size - self._dtype.is_floating) - 1
            self._is_zero = not np.bitwise_and(values, values.dtype.type(kept)).any()
        if self._dtype.is_floating:
            self._count(memory)

    def seen(self) -> Seen:
        """Of all that was taken. One value alone is no constant."""
        has_values = self._num_elements > 0
        return Seen(
            digest=self._digest.hexdigest(),
            num_nan=self._num_nan,
            num_infinite=self._num_infinite,
            is_zero=self._is_zero and has_values,
            is_constant=self._is_constant and self._num_elements > 1,
        )

    def _count(self, memory: memoryview) -> None:
        """Values that are no finite numbers; types that `count_not_finite` doesn't know are all looked at."""
        if self._dtype.itemsize > 1 and not count_not_finite(memory, self._dtype):
            return
        name = self._dtype.safetensors_name
        for begin in range(0, len(memory), _BLOCK_BYTES):
            values = numbered.numbers(numbered.elements(memory[begin : begin + _BLOCK_BYTES], name), name)
            self._num_nan += int(np.isnan(values).sum())
            self._num_infinite += int(np.isinf(values).sum())
