"""Safetensors headers, parsed by the rules of the format and by nobody's library.

The rules that the library leaves unchecked are checked too: duplicate keys, the opening brace, unknown keys.
A folder of ours must in addition keep the promises of its writer: `format` metadata, aligned data, tensors in
offset order.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

from pp_export.core import dtypes
from pp_export.core.strict_json import JsonError, is_count, parse_object
from pp_export.verification.findings import Fault, MalformedError, brief

MAX_HEADER_BYTES = 100_000_000
PREFIX_BYTES = 8

# Types of the format that pp_export never writes; only their width matters here.
_FOREIGN_BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "C64": 64}


@dataclass(frozen=True)
class TensorEntry:
    """A tensor as a header or a manifest describes it; `begin` and `end` count from the start of the data."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def num_elements(self) -> int:
        """Product of the shape."""
        return num_elements(self.shape)


@dataclass(frozen=True)
class Header:
    """What stands before the data: the tensors in the order of their offsets."""

    tensors: tuple[TensorEntry, ...]
    data_begin: int


def read_header(
    file: io.FileIO, name: str, num_bytes: int, *, ours: bool
) -> tuple[Header | None, list[Fault]]:
    """The header of the open weight file `name` of `num_bytes` bytes, with every rule that it breaks.

    None where too little can be read to speak of tensors. Raises OSError when the disk fails.
    """
    try:
        length = _read_length(file, num_bytes)
        data = _read_exactly(file, length)
        if not data.startswith(b"{"):
            raise MalformedError(f"the header starts with {data[:1]!r}, not with {{")
        fields = parse_object(data)
    except (MalformedError, JsonError) as broken:
        return None, [Fault("bad-header", name, None, str(broken))]
    broken_rules = _metadata_faults(fields.pop("__metadata__", None), ours)
    if ours and length % 8:
        broken_rules.append(f"the header takes {length} bytes, not a multiple of 8")
    faults = [Fault("bad-header", name, None, text) for text in broken_rules]
    entries: list[TensorEntry] = []
    for tensor, value in fields.items():
        try:
            entries.append(_parse_entry(tensor, value))
        except MalformedError as broken:
            faults.append(Fault("bad-header", name, tensor, broken.message))
    if not fields:
        faults.append(Fault("empty-shard", name, None, "the file has no tensors"))
    if len(entries) != len(fields):
        return None, faults
    ordered = sorted(entries, key=lambda entry: (entry.begin, entry.end))
    if ours and entries != ordered:
        faults.append(
            Fault("bad-header", name, None, "it does not list its tensors in the order of their data")
        )
    faults += _offset_faults(name, ordered, num_bytes - PREFIX_BYTES - length)
    return Header(tuple(ordered), PREFIX_BYTES + length), faults


def num_elements(shape: tuple[int, ...]) -> int:
    """Product of the dims, or MalformedError where it takes more than 63 bits."""
    product, has_zero = 1, 0 in shape
    for size in shape:
        product *= size or 1
        if product >= 1 << 63:
            raise MalformedError(f"the shape {brief(shape)} overflows")
    return 0 if has_zero else product


def _read_length(file: io.FileIO, num_bytes: int) -> int:
    if num_bytes < PREFIX_BYTES:
        raise MalformedError(f"the file has {num_bytes} bytes, too few for a header length")
    length = int.from_bytes(_read_exactly(file, PREFIX_BYTES), "little")
    if length > MAX_HEADER_BYTES:
        raise MalformedError(f"the header claims {length} bytes; the format allows {MAX_HEADER_BYTES}")
    if PREFIX_BYTES + length > num_bytes:
        raise MalformedError(f"the header claims {length} bytes, the file has {num_bytes}")
    return length


def _read_exactly(file: io.FileIO, num_bytes: int) -> bytes:
    data = bytearray()
    while len(data) < num_bytes:
        part = file.read(num_bytes - len(data))
        if not part:
            raise MalformedError("the file ended while it was read")
        data += part
    return bytes(data)


def _metadata_faults(metadata: Any, ours: bool) -> list[str]:
    if metadata is None:
        return ["the header has no __metadata__ with a format"] if ours else []
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        return [f"__metadata__ is not a map from strings to strings but {brief(metadata)}"]
    if ours and metadata != {"format": "pt"}:
        return [f"__metadata__ is {brief(metadata)}, not {{'format': 'pt'}}"]
    return []


def _parse_entry(name: str, value: Any) -> TensorEntry:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise MalformedError(f"its entry is not dtype, shape and data_offsets but {brief(value)}")
    entry = parse_tensor(name, value["dtype"], value["shape"], value["data_offsets"])
    num_bits = entry.num_elements * bits_of(entry.dtype)
    if num_bits != 8 * (entry.end - entry.begin):
        num_bytes = entry.end - entry.begin
        raise MalformedError(
            f"{entry.dtype}{brief(entry.shape)} is given {num_bytes} bytes, which is not its size"
        )
    return entry


def parse_tensor(name: str, dtype: Any, shape: Any, offsets: Any) -> TensorEntry:
    """A tensor's description with the right types of values, or MalformedError; sizes are not compared."""
    if not isinstance(dtype, str) or not bits_of(dtype):
        raise MalformedError(f"the format has no dtype {brief(dtype)}")
    if not isinstance(shape, (list, tuple)) or not all(is_count(size) for size in shape):
        raise MalformedError(f"the shape {brief(shape)} is not a list of sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(is_count(offset) for offset in offsets):
        raise MalformedError(f"the offsets {brief(offsets)} are not two positions")
    begin, end = offsets
    if end < begin:
        raise MalformedError(f"the offsets {brief(offsets)} run backwards")
    return TensorEntry(name, dtype, tuple(shape), begin, end)


def bits_of(dtype: str) -> int:
    """Width of an element; 0 where the format has no such type."""
    known = dtypes.from_safetensors(dtype)
    return 8 * known.itemsize if known else _FOREIGN_BITS.get(dtype, 0)


def _offset_faults(name: str, ordered: list[TensorEntry], data_bytes: int) -> list[Fault]:
    faults: list[Fault] = []
    position = 0
    for entry in ordered:
        if entry.begin != position:
            text = f"its data begin at {entry.begin}, but the tensor before it ends at {position}"
            faults.append(Fault("bad-header", name, entry.name, text))
        position = entry.end
    if position != data_bytes:
        cut = next((entry.name for entry in ordered if entry.end > data_bytes), None)
        text = f"the header describes {position} bytes of data, the file has {data_bytes}"
        faults.append(Fault("wrong-size", name, cut, text))
    return faults
