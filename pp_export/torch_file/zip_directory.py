"""The directory at the end of a zip: which members it has, and where.

Stricter than Python's own reader, and many times as fast: the end is where the zip ends, nothing lies between
it and the directory, and there is no comment. torch, miniz and Python write such zips.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from typing import NamedTuple

ReadAt = Callable[[int, int], bytes]
"""Bytes of the zip from a position on: as many as asked for, fewer where the zip ends."""

_END = struct.Struct("<4sHHHHIIH")
_END_64 = struct.Struct("<4sQHHIIQQQQ")
_LOCATOR_64 = struct.Struct("<4sIQI")
_ENTRY = struct.Struct("<4sHHHHHHIIIHHHHHII")
STORED = 0
"""The method of members that are not compressed."""

_MAX_BYTES = 1 << 28
_PIECE_BYTES = 4096
_FULL_16, _FULL_32 = 0xFFFF, 0xFFFFFFFF


class Member(NamedTuple):
    """What the directory says of a member: `begin` is where its local header begins, `num_bytes` what it has
    when it is unpacked.
    """

    name: bytes
    version: int
    flags: int
    method: int
    crc: int
    packed_bytes: int
    num_bytes: int
    begin: int

    @property
    def inner_name(self) -> str:
        """Its name without the folder in which torch puts all members."""
        return self.name.decode("utf-8", "replace").partition("/")[2]


class Directory(NamedTuple):
    """The members in the order of the directory, which begins at byte `begin`."""

    members: tuple[Member, ...]
    begin: int


class Window:
    """Bytes [offset, offset + length) of an open file, as a zip of their own.

    They are read in few pieces: each of 4 KiB or more, of which all stay in memory. So the directory of a
    small zip, and all small members beside it, come in one read, those before a large member in another.
    """

    def __init__(self, descriptor: int, offset: int, length: int) -> None:
        self.length = length
        self._descriptor, self._offset = descriptor, offset
        self._pieces: list[tuple[int, bytes]] = []

    def read(self, begin: int, num_bytes: int) -> bytes:
        """Bytes from byte `begin` on, fewer where window or file end. OSError where reading fails."""
        end = min(begin + num_bytes, self.length)
        for at, piece in self._pieces:
            if at <= begin and end <= at + len(piece):
                return piece[begin - at : end - at]
        at = max(0, min(begin, self.length - _PIECE_BYTES))
        size = min(max(end - at, _PIECE_BYTES), self.length - at)
        piece = os.pread(self._descriptor, size, self._offset + at)
        self._pieces.append((at, piece))
        return piece[begin - at : end - at]


class NoDirectoryError(ValueError):
    """Where a zip has its end there is none: it is cut off, not finished, or no zip at all."""


def read_directory(read: ReadAt, length: int) -> Directory:
    """The directory of a zip of `length` bytes; ValueError where it is damaged."""
    num_members, num_bytes, begin, end = _read_end(read, length)
    if num_bytes > _MAX_BYTES:
        raise ValueError(f"its directory claims {num_bytes} bytes")
    if begin + num_bytes != end:
        raise ValueError(f"its directory ends at byte {begin + num_bytes}, not at {end}")
    data = read(begin, num_bytes)
    if len(data) != num_bytes:
        raise ValueError("its directory is cut off")
    members, at = [], 0
    for _ in range(num_members):
        member, at = _parse_entry(data, at)
        members.append(member)
    if at != num_bytes:
        raise ValueError(f"its directory has {num_bytes - at} bytes more than its {num_members} members need")
    return Directory(tuple(members), begin)


def _read_end(read: ReadAt, length: int) -> tuple[int, int, int, int]:
    """Number of members, length and begin of the directory, and where the end records behind it begin."""
    at = length - _END.size
    data = read(at, _END.size) if at >= 0 else b""
    if len(data) < _END.size or not data.startswith(b"PK\x05\x06"):
        raise NoDirectoryError("there is no end of a zip at its end")
    _, disk, first_disk, here, total, num_bytes, begin, comment = _END.unpack(data)
    locator = read(at - _LOCATOR_64.size, _LOCATOR_64.size) if at >= _LOCATOR_64.size else b""
    if not locator.startswith(b"PK\x06\x07"):
        if disk or first_disk or here != total or comment:
            raise ValueError("the end of the zip says what no zip of one file says")
        return total, num_bytes, begin, at
    _, on_disk, at_64, disks = _LOCATOR_64.unpack(locator)
    data = read(at_64, _END_64.size)
    if len(data) < _END_64.size or not data.startswith(b"PK\x06\x06"):
        raise ValueError(f"no end of a large zip is at byte {at_64}")
    _, rest, _, _, *numbers = _END_64.unpack(data)
    disk_64, first_64, here_64, total_64, num_bytes_64, begin_64 = numbers
    narrow = (
        *((here, _FULL_16, here_64), (total, _FULL_16, total_64)),
        *((num_bytes, _FULL_32, num_bytes_64), (begin, _FULL_32, begin_64)),
    )
    if (
        (on_disk, disk_64, first_64, comment) != (0, 0, 0, 0)
        or disks != 1
        or not {disk, first_disk} <= {0, _FULL_16}
        or here_64 != total_64
        or at_64 + 12 + rest != at - _LOCATOR_64.size
        or any(value not in (full, wide) for value, full, wide in narrow)
    ):
        raise ValueError("the two ends of the zip contradict each other")
    return total_64, num_bytes_64, begin_64, at_64


def _parse_entry(data: bytes, at: int) -> tuple[Member, int]:
    """The entry that begins at byte `at` of the directory, and where the next one begins."""
    if at + _ENTRY.size > len(data) or not data.startswith(b"PK\x01\x02", at):
        raise ValueError(f"no entry begins at byte {at} of its directory")
    found = _ENTRY.unpack_from(data, at)
    _, _, version, flags, method, _, _, crc, packed, size, name_length, extra_length, comment, disk, *_ = (
        found
    )
    begin = found[-1]
    at += _ENTRY.size
    name = data[at : at + name_length]
    at += name_length
    if at + extra_length > len(data) or disk or comment:
        raise ValueError(f"the directory's entry of {name!r} is damaged")
    if _FULL_32 in (packed, size, begin):
        wide = iter(_wide_values(data[at : at + extra_length]))
        size, packed, begin = (
            next(wide, each) if each == _FULL_32 else each for each in (size, packed, begin)
        )
    return Member(name, version, flags, method, crc, packed, size, begin), at + extra_length


def _wide_values(extra: bytes) -> tuple[int, ...]:
    """The numbers of 64 bits in the extra fields of an entry, in the order of the format."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        at += 4
        if at + length > len(extra):
            raise ValueError("an entry of its directory is damaged")
        if kind == 1:
            return struct.unpack_from(f"<{length // 8}Q", extra, at)
        at += length
    return ()


def read_checked(read: ReadAt, member: Member, begin: int) -> bytes:
    """The bytes of a member that is stored as it is and begins at byte `begin`; ValueError unless they have
    its CRC-32.
    """
    data = read(begin, member.num_bytes)
    if len(data) != member.num_bytes or zlib.crc32(data) != member.crc:
        raise ValueError(f"the CRC-32 of {member.inner_name} is not the one that the directory tells")
    return data
