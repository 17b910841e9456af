"""Counts values that are no finite numbers: all bits of their exponents are set, and those of no others."""

from __future__ import annotations

import numpy as np

from pp_export.core import elements
from pp_export.core.dtypes import DType

_EXPONENTS = {"float16": 0x7C00, "bfloat16": 0x7F80, "float32": 0x7F80_0000, "float64": 0x7FF0 << 48}
_STEP_ELEMENTS = 1 << 20
"""Large enough that threads don't wait for the interpreter between steps, small enough for a cache."""


def count_not_finite(memory: memoryview, dtype: DType) -> int:
    """How many of the dense values in `memory` are NaN or infinite; 0 for types that have neither."""
    exponent = _EXPONENTS.get(dtype.torch_name)
    if exponent is None:
        return 0
    count, values = 0, elements.of(memory, dtype.itemsize, (len(memory) // dtype.itemsize,))
    spare = np.empty(min(_STEP_ELEMENTS, values.size), values.dtype)
    for begin in range(0, values.size, _STEP_ELEMENTS):
        step = values[begin : begin + _STEP_ELEMENTS]
        exponents = np.bitwise_and(step, exponent, out=spare[: step.size])
        if exponents.max() == exponent:
            count += int(np.count_nonzero(exponents == exponent))
    return count
