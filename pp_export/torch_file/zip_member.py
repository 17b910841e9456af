"""The header that stands before a member's bytes in a zip; the directory tells only where it is."""

from __future__ import annotations

import struct
from typing import NamedTuple

from pp_export.torch_file.zip_directory import ReadAt

_FIXED = struct.Struct("<4sHHHHHIIIHH")
_SIGNATURE = b"PK\x03\x04"
_USUAL_BYTES = 256


class LocalHeader(NamedTuple):
    """What stands before a member, and `begin`: the byte of the zip with which the member itself begins."""

    version: int
    flags: int
    method: int
    time: int
    date: int
    crc: int
    packed: int
    size: int
    name: bytes
    extra: bytes
    begin: int


def read_local_header(read: ReadAt, at: int) -> LocalHeader:
    """The header at byte `at` of a zip, in one read where it is no longer than usual; ValueError where none
    begins there.
    """
    data = read(at, _USUAL_BYTES)
    if len(data) < _FIXED.size or not data.startswith(_SIGNATURE):
        raise ValueError(f"no member begins at byte {at}")
    _, version, flags, method, time, date, crc, packed, size, name_length, _ = found = _FIXED.unpack_from(
        data
    )
    num_bytes = _FIXED.size + name_length + found[-1]
    if num_bytes > len(data):
        data = read(at, num_bytes)
    name_end = _FIXED.size + name_length
    name, extra = data[_FIXED.size : name_end], data[name_end:num_bytes]
    return LocalHeader(version, flags, method, time, date, crc, packed, size, name, extra, at + num_bytes)
