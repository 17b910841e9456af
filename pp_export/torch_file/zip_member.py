"""The header that stands before a member's bytes in a zip; Python's own reader tells only the directory."""

from __future__ import annotations

import struct
from typing import NamedTuple, Protocol

_FIXED = struct.Struct("<4sHHHHHIIIHH")
_SIGNATURE = b"PK\x03\x04"


class _File(Protocol):
    def seek(self, offset: int, /) -> int: ...
    def read(self, size: int, /) -> bytes: ...


class LocalHeader(NamedTuple):
    """What stands before a member, and `begin`: the byte of the file with which the member itself begins."""

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


def read_local_header(file: _File, at: int) -> LocalHeader:
    """The header at byte `at` of `file`; ValueError where none begins there."""
    file.seek(at)
    fixed = file.read(_FIXED.size)
    if len(fixed) < _FIXED.size or not fixed.startswith(_SIGNATURE):
        raise ValueError(f"no member begins at byte {at}")
    _, version, flags, method, time, date, crc, packed, size, name_length, extra_length = _FIXED.unpack(fixed)
    name, extra = file.read(name_length), file.read(extra_length)
    begin = at + _FIXED.size + name_length + extra_length
    return LocalHeader(version, flags, method, time, date, crc, packed, size, name, extra, begin)
