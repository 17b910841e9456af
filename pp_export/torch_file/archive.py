"""One file that torch.save wrote: which tensors it holds, and where in the file their bytes lie.

Since torch 1.6 such a file is a zip whose members are stored as they are: `data.pkl` tells the values, and
every storage is a member of its own (torch/serialization.py `_save`; the bytes are those of
tensor_item.py). Only the zip's directory, `data.pkl` and local headers are read, never a tensor.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pp_export.core import dtypes
from pp_export.core.dtypes import DType
from pp_export.core.errors import CheckpointError
from pp_export.core.views import View
from pp_export.torch_file import inert, unpickler, zip_directory
from pp_export.torch_file.unpickler import Split
from pp_export.torch_file.zip_directory import (
    STORED,
    NoDirectoryError,
    ReadAt,
    Window,
    read_checked,
    read_directory,
)
from pp_export.torch_file.zip_member import read_local_header

_STORAGES = {
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "DoubleStorage": "float64",
    "ByteStorage": "uint8",
    "CharStorage": "int8",
    "ShortStorage": "int16",
    "IntStorage": "int32",
    "LongStorage": "int64",
    "BoolStorage": "bool",
}
_TENSORS = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3")
_PARAMETERS = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
_WITH_ATTRIBUTES = "torch._tensor._rebuild_from_type_v2"
_ORDER = b"little"
_AGAIN = "copy the file again, or take another iteration"


@dataclass(frozen=True)
class StoredView:
    """A tensor as torch describes one: a view of the elements of a storage, which are of one type."""

    storage: str
    dtype: DType
    view: View

    @property
    def num_bytes(self) -> int:
        return self.view.num_elements * self.dtype.itemsize


@dataclass(frozen=True)
class Member:
    """A storage in the file: where its local header begins, its length in bytes, its CRC-32."""

    header: int
    length: int
    crc: int


@dataclass(frozen=True)
class Archive:
    """A file that torch.save wrote. Tensors in `value` are objects of the pickle; `view` understands them."""

    path: Path
    value: Any
    storages: Mapping[str, Member]

    def view(self, stored: Any) -> StoredView | None:
        """The tensor or parameter that `stored` is, or None where it is none; CheckpointError if damaged."""
        try:
            found = view_of(_bare(stored))
            if found is not None:
                self._check_inside(found)
            return found
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"a stored tensor is not what torch writes: {error}", where={"file": self.path}, advice=_AGAIN
            ) from error

    def _check_inside(self, stored: StoredView) -> None:
        view, length = stored.view, self.storages[stored.storage].length
        last = view.offset + sum((n - 1) * stride for n, stride in zip(view.shape, view.strides))
        if view.num_elements and (last + 1) * stored.dtype.itemsize > length:
            raise ValueError(f"it reaches beyond its storage of {length} bytes")

    def begins(self, keys: Iterable[str]) -> dict[str, int]:
        """The byte of the file with which each storage begins, from the local headers."""
        found: dict[str, int] = {}
        size = self.path.stat().st_size
        with self.path.open("rb") as file:

            def read(begin: int, num_bytes: int) -> bytes:
                return os.pread(file.fileno(), num_bytes, begin)

            for key in sorted(keys, key=lambda key: self.storages[key].header):
                member = self.storages[key]
                try:
                    header = read_local_header(read, member.header)
                except ValueError as error:
                    raise _damaged(self.path, str(error)) from None
                if not header.name.endswith(f"/data/{key}".encode()):
                    raise _damaged(
                        self.path, f"another member than data/{key} begins at byte {member.header}"
                    )
                found[key] = header.begin
                if found[key] + member.length > size:
                    raise _damaged(self.path, f"data/{key} reaches beyond its end")
        return found


def view_of(tensor: Any) -> StoredView | None:
    """The tensor that an object of the pickle describes; None where it is none, ValueError where it can't
    be.
    """
    kind = getattr(tensor, "kind", "")
    if kind not in _TENSORS:
        return None
    (_, storage_kind, key, _, _), offset, shape, strides, _, _, *more = tensor.args
    # Types that came after typed storages have a storage of bytes, and the type beside it.
    name = _STORAGES[storage_kind.__name__] if kind.endswith("v2") else more.pop(0)
    if any(more):
        raise ValueError(f"it is another tensor seen through {more[0]}")
    view = View(int(offset), tuple(map(int, shape)), tuple(map(int, strides)))
    if len(view.shape) != len(view.strides) or min((view.offset, *view.shape, *view.strides)) < 0:
        raise ValueError(f"offset {offset}, shape {shape} and strides {strides} describe no tensor")
    return StoredView(str(key), dtypes.from_torch(name), view)


def read(path: Path, split: Split | None = None) -> Archive:
    """What the file holds, without tensors; CheckpointError where it is truncated, damaged or no zip.

    `split` finds training args in it, as `unpickler.load` takes it.
    """
    try:
        with path.open("rb") as file:
            start = file.read(4)
            if start.startswith(b"PK"):
                length = os.fstat(file.fileno()).st_size
                return _read(Window(file.fileno(), 0, length).read, length, path, split)
    except FileNotFoundError:
        raise CheckpointError(f"{path.name} is missing", where={"file": path}) from None
    except OSError as error:
        raise _damaged(path, str(error)) from error
    raise CheckpointError(
        f"{path.name} is not what torch.save writes since torch 1.6" if start else f"{path.name} is empty",
        where={"file": path},
        expected="a zip archive",
        got=f"a file that begins with {start!r}" if start else "no bytes",
        advice="load it with torch and store it again with torch.save" if start else _AGAIN,
    )


def read_part(path: Path, offset: int, length: int, split: Split | None = None) -> Any:
    """The value in an archive that lies at bytes [offset, offset + length) of a file, without tensors."""
    try:
        with path.open("rb") as file:
            return _read(Window(file.fileno(), offset, length).read, length, path, split).value
    except OSError as error:
        raise CheckpointError(f"can't read: {error.strerror}", where={"file": path}) from error


def _read(read: ReadAt, length: int, path: Path, split: Split | None) -> Archive:
    try:
        directory = read_directory(read, length)
        members = {member.inner_name: member for member in directory.members}
        packed = [name for name, member in members.items() if member.method != STORED]
        if packed or len(members) != len(directory.members):
            raise ValueError(f"member {packed[0]} is compressed" if packed else "two members have one name")
        order = members.get("byteorder")
        if order is not None and (order.num_bytes != len(_ORDER) or _bytes_of(read, order) != _ORDER):
            raise ValueError("its tensors are not stored in little-endian order")
        if members["data.pkl"].num_bytes > unpickler.MAX_BYTES:
            raise ValueError(f"its data.pkl has more than {unpickler.MAX_BYTES:,} bytes")
        value = unpickler.load(_bytes_of(read, members["data.pkl"]), str(path), split)
    except CheckpointError:
        raise
    except NoDirectoryError as error:
        raise _damaged(path, f"truncated or not finished ({error})") from error
    except Exception as error:  # a damaged archive can raise nearly anything
        raise _damaged(path, str(error)) from error
    storages = {
        name.removeprefix("data/"): Member(member.begin, member.num_bytes, member.crc)
        for name, member in members.items()
        if name.startswith("data/")
    }
    return Archive(path, value, storages)


def _bytes_of(read: ReadAt, member: zip_directory.Member) -> bytes:
    return read_checked(read, member, read_local_header(read, member.begin).begin)


def storages_in(value: Any) -> set[str]:
    """The keys of all storages that a value of the pickle refers to, however deep."""
    return {
        str(item[2])
        for item in inert.everything_in(value)
        if isinstance(item, tuple) and len(item) == 5 and item[0] == "storage"
    }


def _bare(stored: Any) -> Any:
    """The tensor in a parameter, or in a tensor with attributes, such as Megatron's fp32 masters have."""
    kind = getattr(stored, "kind", "")
    if kind in _PARAMETERS:
        return _bare(stored.args[0])
    if kind == _WITH_ATTRIBUTES:
        function, _, args, _ = stored.args
        return _bare(function(*args))  # inert objects all the way: nothing of torch is called
    return stored


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{path.name} is damaged: {what}", where={"file": path}, advice=_AGAIN)
