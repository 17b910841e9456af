"""Element types, by the names that torch, safetensors and config.json give them. Needs no torch."""

from __future__ import annotations

from typing import NamedTuple

from pp_export.core.errors import CheckpointError


class DType(NamedTuple):
    """One element type: torch's name, the safetensors name, bytes per element."""

    torch_name: str
    safetensors_name: str
    itemsize: int

    @property
    def is_floating(self) -> bool:
        return "float" in self.torch_name


# In the order of the `Dtype` enum of the safetensors library, by which its writer sorts (largest first).
_DTYPES = (
    DType("bool", "BOOL", 1),
    DType("uint8", "U8", 1),
    DType("int8", "I8", 1),
    DType("float8_e5m2", "F8_E5M2", 1),
    DType("float8_e4m3fn", "F8_E4M3", 1),
    DType("float8_e8m0fnu", "F8_E8M0", 1),
    DType("int16", "I16", 2),
    DType("uint16", "U16", 2),
    DType("float16", "F16", 2),
    DType("bfloat16", "BF16", 2),
    DType("int32", "I32", 4),
    DType("uint32", "U32", 4),
    DType("float32", "F32", 4),
    DType("float64", "F64", 8),
    DType("int64", "I64", 8),
    DType("uint64", "U64", 8),
)
_BY_TORCH_NAME = {dtype.torch_name: dtype for dtype in _DTYPES}
_BY_SAFETENSORS_NAME = {dtype.safetensors_name: dtype for dtype in _DTYPES}
_ORDER = {dtype: position for position, dtype in enumerate(_DTYPES)}


def is_torch_name(name: str) -> bool:
    """Whether torch has an element type of this name that can be exported."""
    return name in _BY_TORCH_NAME


def from_torch(name: str) -> DType:
    """The type that torch calls `name` (`bfloat16` or `torch.bfloat16`)."""
    try:
        return _BY_TORCH_NAME[name.removeprefix("torch.")]
    except KeyError:
        raise CheckpointError(
            f"element type {name} is not supported", expected=", ".join(_BY_TORCH_NAME)
        ) from None


def from_safetensors(name: str) -> DType | None:
    """The type that a safetensors header calls `name`, or None where the format has no such type."""
    return _BY_SAFETENSORS_NAME.get(name)


def order(dtype: DType) -> int:
    """Position in the library's enum: its writer puts larger ones first."""
    return _ORDER[dtype]
