"""The elements of a tensor as their bits, and as numbers, for every type that safetensors knows.

No torch is needed, and numpy only when something is called.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from pp_export.verification.header import bits_of

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    Bits = NDArray[numpy.unsignedinteger[Any]]
    Numbers = NDArray[Any]

_VIEWS = {
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
}
# Bits of exponent and mantissa, bias of the exponent, codes of NaN. E5M2 is the upper half of a float16.
_SMALL_FLOATS: dict[str, tuple[int, int, int, tuple[int, ...]]] = {
    "F4": (2, 1, 1, ()),
    "F6_E2M3": (2, 3, 1, ()),
    "F6_E3M2": (3, 2, 3, ()),
    "F8_E4M3": (4, 3, 7, (0x7F, 0xFF)),
    "F8_E4M3FNUZ": (4, 3, 8, (0x80,)),
    "F8_E5M2FNUZ": (5, 2, 16, (0x80,)),
}


def elements(data: memoryview, dtype: str) -> Bits:
    """The bits of each element of `data`, whole elements of the safetensors type `dtype`."""
    import numpy

    num_bits = bits_of(dtype)
    if num_bits >= 8:
        return numpy.frombuffer(data, f"u{num_bits // 8}")
    each_bit = numpy.unpackbits(numpy.frombuffer(data, numpy.uint8), bitorder="little").reshape(-1, num_bits)
    packed: Bits = (each_bit << numpy.arange(num_bits, dtype=numpy.uint8)).sum(1, numpy.uint8)
    return packed


def numbers(bits: Bits, dtype: str) -> Numbers:
    """The values as float64 (complex as complex128), which holds every floating type exactly and int64 to 53
    bits.
    """
    import numpy

    if dtype in _VIEWS:
        values: Numbers = bits.view(_VIEWS[dtype])
    elif dtype == "BOOL":
        values = bits != 0
    elif dtype == "BF16":
        values = (bits.astype(numpy.uint32) << 16).view(numpy.float32)
    elif dtype == "F8_E5M2":
        values = (bits.astype(numpy.uint16) << 8).view(numpy.float16)
    elif dtype == "F8_E8M0":
        values = numpy.where(bits == 0xFF, numpy.nan, numpy.ldexp(1.0, bits.astype(numpy.int32) - 127))
    elif dtype in _SMALL_FLOATS:
        values = _small_floats(dtype)[bits]
    else:  # unsigned integers
        values = bits
    with numpy.errstate(invalid="ignore"):  # some NaNs are said to be invalid
        return values.astype(numpy.complex128 if dtype.startswith("C") else numpy.float64)


def steps_between(bits_a: Bits, bits_b: Bits, dtype: str) -> Numbers | None:
    """How many values of the type each element of one side is from that of the other (float64): an ULP is
    one step. Zeros of both signs are one value. None for complex numbers, which have no order.
    """
    import numpy

    if dtype.startswith("C"):
        return None
    if "F" not in dtype or dtype == "F8_E8M0":  # bits grow with the values
        signed = bits_a.dtype.str.replace("u", "i") if dtype.startswith("I") else bits_a.dtype.str
        a, b = bits_a.view(signed), bits_b.view(signed)
        return numpy.where(a > b, bits_a - bits_b, bits_b - bits_a).astype(numpy.float64)
    sign = 1 << (bits_of(dtype) - 1)
    sizes = [bits & bits.dtype.type(sign - 1) for bits in (bits_a, bits_b)]
    apart = numpy.where(sizes[0] > sizes[1], sizes[0] - sizes[1], sizes[1] - sizes[0])
    is_same_side = (bits_a ^ bits_b) < sign
    across = sizes[0].astype(numpy.float64) + sizes[1]
    steps: Numbers = numpy.where(is_same_side, apart, across)
    return steps


@cache
def _small_floats(dtype: str) -> Numbers:
    """The value of every code of a type of at most eight bits."""
    import numpy

    exponent_bits, mantissa_bits, bias, nans = _SMALL_FLOATS[dtype]
    codes = numpy.arange(1 << (1 + exponent_bits + mantissa_bits))
    mantissa = (codes & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    exponent = codes >> mantissa_bits & ((1 << exponent_bits) - 1)
    size = numpy.ldexp(mantissa + (exponent > 0), numpy.maximum(exponent, 1) - bias)
    values: Numbers = numpy.where(codes >> (exponent_bits + mantissa_bits), -size, size)
    values[list(nans)] = numpy.nan
    return values
