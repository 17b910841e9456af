"""Where a tensor's bytes lie inside a stored item, and which CRC-32 they must have.

torch_dist stores every box as one complete `torch.save` archive (a zip whose members are stored, not packed)
at an offset of a `.distcp` file; the layout is that of PyTorchStreamWriter
(caffe2/serialize/inline_container.cc): per member a local header padded with an `FB` extra field, the bytes,
a data descriptor; then the central directory with the CRCs.
"""

from __future__ import annotations

import io
import os
import struct
import zipfile
from dataclasses import dataclass
from typing import Any

from pp_export.core.errors import CheckpointError
from pp_export.core.tensors import TensorSpec
from pp_export.torch_file import archive, unpickler
from pp_export.torch_file.zip_member import read_local_header


@dataclass(frozen=True)
class StoredBytes:
    """`num_bytes` bytes from byte `offset` of a file, whose CRC-32 must be `crc`."""

    offset: int
    num_bytes: int
    crc: int


class _Window(io.RawIOBase):
    """Bytes [offset, offset + length) of an open file as a file of its own."""

    def __init__(self, descriptor: int, offset: int, length: int) -> None:
        self._descriptor, self._offset, self._length, self._position = descriptor, offset, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._length}[whence]
        self._position = max(0, origin + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._length - self._position)
        data = os.pread(
            self._descriptor, left if size < 0 else min(size, left), self._offset + self._position
        )
        self._position += len(data)
        return data


def locate(descriptor: int, offset: int, length: int, spec: TensorSpec) -> StoredBytes:
    """The bytes of the one tensor that the archive at [offset, offset + length) holds, which must be `spec`.

    Every other member is checked against its CRC, and every local header and data descriptor against the
    directory. Raises CheckpointError where the archive is damaged or holds anything else.
    """
    try:
        return _locate(descriptor, offset, length, spec)
    except (
        zipfile.BadZipFile,
        struct.error,
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        ArithmeticError,
        EOFError,
        RuntimeError,
    ) as error:
        raise CheckpointError(
            f"a stored tensor's archive is damaged: {error}", advice="copy or save the checkpoint again"
        ) from error


def _locate(descriptor: int, offset: int, length: int, spec: TensorSpec) -> StoredBytes:
    window = _Window(descriptor, offset, length)
    with zipfile.ZipFile(window) as item:
        members = item.infolist()
        names = {member.filename.partition("/")[2]: member for member in members}
        if len(names) != len(members):
            raise ValueError("two members have one name")
        tensor_member = names["data/0"]
        data_offset = 0
        end = 0
        for member in members:
            begin = _check_member(window, member, end)
            if member is tensor_member:
                data_offset = begin
            else:
                item.read(member)  # checks the CRC
            end = begin + member.file_size + _descriptor_bytes(window, member, begin)
        if end != item.start_dir or length != window.seek(0, os.SEEK_END):
            raise ValueError("members do not end where the directory begins")
        if "byteorder" in names and item.read(names["byteorder"]) != b"little":
            raise ValueError("the tensor is not stored in little-endian order")
        stored = unpickler.load(item.read(names["data.pkl"]), "data.pkl")
    _check_tensor(stored, spec)
    if tensor_member.file_size != spec.num_bytes:
        raise ValueError(f"the tensor has {tensor_member.file_size} bytes, expected {spec.num_bytes}")
    return StoredBytes(offset + data_offset, spec.num_bytes, tensor_member.CRC)


def _check_member(window: _Window, member: zipfile.ZipInfo, expected_offset: int) -> int:
    """Offset of the member's bytes, after comparing its local header with the directory's entry."""
    if member.header_offset != expected_offset or member.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"member {member.filename} is not where or how torch stores it")
    header = read_local_header(window, member.header_offset)
    extra = header.extra
    filled = len(extra) < 4 or (extra[:2] == b"FB" and extra[4:] == b"Z" * (len(extra) - 4))
    zip64 = extra[:2] == b"\x01\x00"
    if (
        header.name != member.orig_filename.encode()
        or header.flags != member.flag_bits
        or header.method != member.compress_type
        or header.version != member.extract_version
        or (header.time, header.date) != (0, 0)
        or header.crc not in (0, member.CRC)
        or not (filled or zip64)
        or any(value not in (0, 0xFFFFFFFF, member.file_size) for value in (header.packed, header.size))
    ):
        raise ValueError(f"member {member.filename}: local header and directory disagree")
    return header.begin


def _descriptor_bytes(window: _Window, member: zipfile.ZipInfo, begin: int) -> int:
    """Length of the data descriptor behind the member, after comparing it with the directory's entry."""
    if not member.flag_bits & 0x08:
        return 0
    window.seek(begin + member.file_size)
    found = window.read(24)
    short = struct.pack("<4sIII", b"PK\x07\x08", member.CRC, *[member.file_size & 0xFFFFFFFF] * 2)
    long = struct.pack("<4sIQQ", b"PK\x07\x08", member.CRC, member.file_size, member.file_size)
    for descriptor in (long, short):
        if found.startswith(descriptor):
            return len(descriptor)
    raise ValueError(f"member {member.filename}: data descriptor and directory disagree")


def _check_tensor(stored: Any, spec: TensorSpec) -> None:
    """The pickle beside the bytes must describe one contiguous tensor of the expected shape that owns its
    storage.
    """
    seen = archive.view_of(stored)
    if seen is None:
        raise ValueError(f"the item holds {stored!r}, not a tensor")
    found = TensorSpec(seen.view.shape, seen.dtype)
    if found != spec:
        raise ValueError(f"the item holds {found}, expected {spec}")
    (_, _, _, _, size) = stored.args[0]
    full = spec.num_elements if stored.kind.endswith("v2") else spec.num_bytes
    if (seen.storage, seen.view.offset, size) != ("0", 0, full) or not seen.view.is_dense:
        raise ValueError("the item's tensor does not fill its storage contiguously")
