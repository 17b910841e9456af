"""Claims of `pp_export.verification.elements`: every type of the format is read as torch reads it."""

from __future__ import annotations

import math

import numpy
import pytest
import torch

from pp_export.verification.elements import elements, numbers
from tests.cpu.verification.test_diff import DTYPES

SAFETENSORS_NAMES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e8m0fnu: "F8_E8M0",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
    torch.int16: "I16",
    torch.uint16: "U16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.uint32: "U32",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.uint64: "U64",
    torch.complex64: "C64",
}


def of_torch(data: bytes, dtype: torch.dtype) -> numpy.ndarray:
    tensor = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(dtype)
    return tensor.to(torch.complex128 if dtype.is_complex else torch.float64).numpy()


@pytest.mark.parametrize("dtype", SAFETENSORS_NAMES, ids=str)
def test_values_are_those_of_torch(dtype: torch.dtype) -> None:
    """All codes of types of one and two bytes, and random bits of wider ones, have torch's values: NaN,
    infinity, subnormal numbers and negative zero among them.
    """
    itemsize = dtype.itemsize
    data = numpy.random.default_rng(0).bytes(80_000)
    if itemsize <= 2:
        data = numpy.arange(256**itemsize).astype(f"u{itemsize}").tobytes()
    if dtype == torch.bool:
        data = bytes([0, 1, 1, 0])
    name = SAFETENSORS_NAMES[dtype]
    for begin in (0, 1):  # a position in memory that fits no element, too
        shifted = memoryview(bytes(begin) + data)[begin:]
        found = numbers(elements(shifted, name), name)
        numpy.testing.assert_array_equal(found, of_torch(data, dtype), strict=True)
        finite = numpy.isfinite(found) & (found == 0)
        assert (numpy.signbit(found.real) == numpy.signbit(of_torch(data, dtype).real))[finite].all()


def test_every_type_of_a_folder_is_among_them() -> None:
    """What `diff` is tested with is held against torch here."""
    dtypes = {getattr(each, "values", (each,))[0] for each in DTYPES}
    assert dtypes <= SAFETENSORS_NAMES.keys()


def test_elements_smaller_than_a_byte() -> None:
    """Of 4 and 6 bits: the first element is in the low bits, the values are those of the OCP's MX formats."""
    four = elements(memoryview(bytes([0x21, 0xF7])), "F4")
    assert four.tolist() == [1, 2, 7, 15]
    assert numbers(four, "F4").tolist() == [0.5, 1.0, 6.0, -6.0]
    codes = [1, 0b001000, 0b011111, 0b111111]
    packed = sum(code << (6 * place) for place, code in enumerate(codes)).to_bytes(3, "little")
    six = elements(memoryview(packed), "F6_E2M3")
    assert six.tolist() == codes
    assert numbers(six, "F6_E2M3").tolist() == [0.125, 1.0, 7.5, -7.5]
    assert numbers(six, "F6_E3M2").tolist() == [0.0625, 0.5, 28.0, -28.0]


def test_int64_beyond_53_bits_is_rounded() -> None:
    """As far as float64 holds them; the count of differing elements does not depend on it."""
    bits = elements(memoryview((2**62 + 1).to_bytes(8, "little")), "I64")
    assert math.isclose(float(numbers(bits, "I64")[0]), 2.0**62)
