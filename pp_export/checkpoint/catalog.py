"""What a checkpoint holds, as one value: made once on rank 0, sent to every rank in a compact form."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from pp_export import dtypes
from pp_export.checkpoint.canonical import canonical
from pp_export.dtypes import DType
from pp_export.tensors import Box, Shape, Slice, TensorSpec


@dataclass(frozen=True)
class StoredBox:
    """A box of a stored tensor and the item that holds it: `length` bytes from `offset` of file number
    `file`.
    """

    box: Box
    file: int
    offset: int
    length: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor under its stored key; `shape` and boxes include stacking axes."""

    key: str
    shape: Shape
    dtype: DType
    boxes: tuple[StoredBox, ...]


@dataclass(frozen=True)
class Description:
    """What a checkpoint says about itself. `other` counts what is no model weight: kind -> (items, bytes)."""

    folder: str
    format: str
    iteration: int | None
    args: Mapping[str, Any] | None
    other: Mapping[str, tuple[int, int]]
    stacked: bool


@dataclass(frozen=True)
class Catalog:
    """The model weights of a checkpoint without their values.

    A *record* is one stored box; `slices` name records by their position over all tensors.
    """

    description: Description
    files: tuple[str, ...]
    tensors: tuple[StoredTensor, ...]

    @cached_property
    def records(self) -> tuple[tuple[StoredTensor, StoredBox], ...]:
        return tuple((tensor, box) for tensor in self.tensors for box in tensor.boxes)

    @cached_property
    def specs(self) -> dict[str, TensorSpec]:
        """Shape and type of every canonical tensor."""
        specs = {}
        for tensor in self.tensors:
            key = canonical(tensor.key)
            spec = TensorSpec(tensor.shape[key.num_stacked :], tensor.dtype)
            specs.update(dict.fromkeys(key.names(tensor.shape), spec))
        return specs

    @cached_property
    def slices(self) -> dict[str, tuple[Slice, ...]]:
        """The stored slices of every canonical tensor."""
        found: dict[str, list[Slice]] = {}
        record = 0
        for tensor in self.tensors:
            key = canonical(tensor.key)
            for stored in tensor.boxes:
                begin = 0
                for name, box in key.expand(stored.box):
                    piece = Slice(name, box, tensor.dtype, record, begin)
                    found.setdefault(name, []).append(piece)
                    begin += piece.num_bytes
                record += 1
        return {name: tuple(slices) for name, slices in found.items()}

    def to_bytes(self) -> bytes:
        """A compact image, linear in the number of stored boxes."""
        tensors = [
            [
                t.key,
                t.shape,
                t.dtype.torch_name,
                [[b.box.offset, b.box.shape, b.file, b.offset, b.length] for b in t.boxes],
            ]
            for t in self.tensors
        ]
        value = {"description": asdict(self.description), "files": self.files, "tensors": tensors}
        return zlib.compress(json.dumps(value, separators=(",", ":")).encode(), 1)

    @classmethod
    def from_bytes(cls, image: bytes) -> Catalog:
        """The catalog that `to_bytes` wrote."""
        value = json.loads(zlib.decompress(image))
        description = Description(**value["description"])
        tensors = tuple(
            StoredTensor(
                key,
                tuple(shape),
                dtypes.from_torch(dtype),
                tuple(
                    StoredBox(Box(tuple(at), tuple(of)), file, begin, size)
                    for at, of, file, begin, size in boxes
                ),
            )
            for key, shape, dtype, boxes in value["tensors"]
        )
        return cls(description, tuple(value["files"]), tensors)
