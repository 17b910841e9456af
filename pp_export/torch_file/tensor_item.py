"""Where a tensor's bytes lie inside a stored item, and which CRC-32 they must have.

torch_dist stores every box as one complete `torch.save` archive (a zip whose members are stored, not packed)
at an offset of a `.distcp` file; the layout is that of PyTorchStreamWriter
(caffe2/serialize/inline_container.cc): per member a local header padded with an `FB` extra field, the bytes,
a data descriptor; then the central directory with the CRCs.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache

from pp_export.core.errors import CheckpointError
from pp_export.core.tensors import TensorSpec
from pp_export.torch_file import archive, unpickler
from pp_export.torch_file.zip_directory import STORED, Member, Window, read_checked, read_directory
from pp_export.torch_file.zip_member import read_local_header

_MAX_OTHER_BYTES = 1 << 20
"""Of a member that is not the tensor: they say how it is stored, in a few bytes each."""


@dataclass(frozen=True)
class StoredBytes:
    """`num_bytes` bytes from byte `offset` of a file, whose CRC-32 must be `crc`."""

    offset: int
    num_bytes: int
    crc: int


def locate(descriptor: int, offset: int, length: int, spec: TensorSpec) -> StoredBytes:
    """The bytes of the one tensor that the archive at [offset, offset + length) holds, which must be `spec`.

    Every other member is checked against its CRC, and every local header and data descriptor against the
    directory. Raises CheckpointError where the archive is damaged or holds anything else.
    """
    try:
        return _locate(Window(descriptor, offset, length), offset, spec)
    except (
        struct.error,
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        ArithmeticError,
    ) as error:
        raise CheckpointError(
            f"a stored tensor's archive is damaged: {error}", advice="copy or save the checkpoint again"
        ) from error


def _locate(window: Window, offset: int, spec: TensorSpec) -> StoredBytes:
    directory = read_directory(window.read, window.length)
    members = {member.inner_name: member for member in directory.members}
    if len(members) != len(directory.members):
        raise ValueError("two members have one name")
    tensor = members["data/0"]
    found: dict[str, bytes] = {}
    data_offset = end = 0
    for name, member in members.items():
        begin = _check_member(window, member, end)
        if member is tensor:
            data_offset = begin
        else:
            if member.num_bytes > _MAX_OTHER_BYTES:
                raise ValueError(f"member {member.name!r} has {member.num_bytes} bytes")
            found[name] = read_checked(window.read, member, begin)
        end = begin + member.num_bytes + _descriptor_bytes(window, member, begin)
    if end != directory.begin:
        raise ValueError("members do not end where the directory begins")
    if found.get("byteorder", b"little") != b"little":
        raise ValueError("the tensor is not stored in little-endian order")
    _check_tensor(found["data.pkl"], spec)
    if tensor.num_bytes != spec.num_bytes:
        raise ValueError(f"the tensor has {tensor.num_bytes} bytes, expected {spec.num_bytes}")
    return StoredBytes(offset + data_offset, spec.num_bytes, tensor.crc)


def _check_member(window: Window, member: Member, expected_begin: int) -> int:
    """Offset of the member's bytes, after comparing its local header with the directory's entry."""
    if member.begin != expected_begin or member.method != STORED:
        raise ValueError(f"member {member.name!r} is not where or how torch stores it")
    header = read_local_header(window.read, member.begin)
    extra = header.extra
    filled = len(extra) < 4 or (extra[:2] == b"FB" and extra[4:] == b"Z" * (len(extra) - 4))
    zip64 = extra[:2] == b"\x01\x00"
    if (
        header.name != member.name
        or header.flags != member.flags
        or header.method != member.method
        or header.version != member.version
        or (header.time, header.date) != (0, 0)
        or header.crc not in (0, member.crc)
        or not (filled or zip64)
        or member.packed_bytes != member.num_bytes
        or any(value not in (0, 0xFFFFFFFF, member.num_bytes) for value in (header.packed, header.size))
    ):
        raise ValueError(f"member {member.name!r}: local header and directory disagree")
    return header.begin


def _descriptor_bytes(window: Window, member: Member, begin: int) -> int:
    """Length of the data descriptor behind the member, after comparing it with the directory's entry."""
    if not member.flags & 0x08:
        return 0
    found = window.read(begin + member.num_bytes, 24)
    short = struct.pack("<4sIII", b"PK\x07\x08", member.crc, *[member.num_bytes & 0xFFFFFFFF] * 2)
    long = struct.pack("<4sIQQ", b"PK\x07\x08", member.crc, member.num_bytes, member.num_bytes)
    for descriptor in (long, short):
        if found.startswith(descriptor):
            return len(descriptor)
    raise ValueError(f"member {member.name!r}: data descriptor and directory disagree")


@lru_cache(maxsize=4096)
def _check_tensor(pickled: bytes, spec: TensorSpec) -> None:
    """The pickle beside the bytes must describe one contiguous tensor of the expected shape that owns its
    storage. Pickles of equal boxes are the same bytes, so few are looked at twice.
    """
    stored = unpickler.load(pickled, "data.pkl")
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
