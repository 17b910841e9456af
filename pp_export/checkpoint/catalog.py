"""What a checkpoint, or a live model, holds, as one value: made once on rank 0, sent to every rank in a
compact form.
"""

from __future__ import annotations

import json
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from pp_export.checkpoint.canonical_names import canonical
from pp_export.core import dtypes
from pp_export.core.dtypes import DType
from pp_export.core.errors import CheckpointError
from pp_export.core.tensors import Box, Shape, Slice, TensorSpec


@dataclass(frozen=True)
class StoredItem:
    """Bytes that were stored at once, with one CRC-32: `length` bytes from `offset` of file number `file`.

    Without a `crc` they are a complete torch.save archive of one tensor, which holds the tensor's bytes and
    their CRC; otherwise they are the bytes themselves. In a live model an item is one box, `file` the number
    of the set of ranks that hold it, and `offset` means nothing.
    """

    file: int
    offset: int
    length: int
    crc: int | None = None


@dataclass(frozen=True)
class StoredBox:
    """A box of a stored tensor: it begins at byte `begin` of the data of item number `item`.

    `strides` (elements) are those of torch, where the box's values are not in C order one after another.
    """

    box: Box
    item: int
    begin: int = 0
    strides: Shape | None = None


@dataclass(frozen=True)
class Interleave:
    """In each of `parts` tensor parallel parts, `block` rows of the gate and of the up projection take
    turns.
    """

    block: int
    parts: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor under its stored key; `shape` and boxes include stacking axes.

    `interleave` says how gate and up projection take turns; None where all of the gate comes first.
    """

    key: str
    shape: Shape
    dtype: DType
    boxes: tuple[StoredBox, ...]
    interleave: Interleave | None = None


@dataclass(frozen=True)
class Description:
    """What a checkpoint says about itself. `other` counts what is no model weight: kind -> (items, bytes).

    `writer` is what is known of the program and release that wrote it; `layout` holds the parallel sizes of
    the run, in Megatron's words; `notes` are sentences for the user. `format` is what users call it, `reader`
    the name of the `Format` that opens its files ("" where there are none).
    """

    folder: str
    format: str
    writer: str
    iteration: int | None
    args: Mapping[str, Any] | None
    layout: Mapping[str, int]
    other: Mapping[str, tuple[int, int]]
    notes: tuple[str, ...] = ()
    reader: str = ""


@dataclass(frozen=True)
class Catalog:
    """The model weights of a checkpoint without their values.

    `slices` name items by their position in `stored_items`. In a live model there are no `files`; `holders`
    says for each number which ranks hold the items that name it. With `is_one_file_per_rank` each file is
    what one rank of the training job held.
    """

    description: Description
    files: tuple[str, ...]
    stored_items: tuple[StoredItem, ...]
    tensors: tuple[StoredTensor, ...]
    holders: tuple[tuple[int, ...], ...] | None = None
    is_one_file_per_rank: bool = False

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
        for tensor in self.tensors:
            for stored in tensor.boxes:
                for slice_ in slices_of(tensor, stored):
                    found.setdefault(slice_.name, []).append(slice_)
        return {name: tuple(slices) for name, slices in found.items()}

    @cached_property
    def key_of_item(self) -> dict[int, str]:
        """The stored key of (one of) the tensors in each item, for errors."""
        return {stored.item: tensor.key for tensor in self.tensors for stored in tensor.boxes}

    @cached_property
    def spec_of_item(self) -> dict[int, TensorSpec]:
        """Shape and type of the one tensor that an item without a CRC of its own archives."""
        return {
            stored.item: TensorSpec(stored.box.shape, tensor.dtype)
            for tensor in self.tensors
            for stored in tensor.boxes
            if self.stored_items[stored.item].crc is None
        }

    def restricted_to(self, items: Sequence[int]) -> Catalog:
        """What a rank needs to read `items`, which are numbered anew in this order: their bytes, keys and
        shapes. Of the description the folder and the reader stay.
        """
        used = [self.stored_items[item] for item in items]
        files: dict[int, int] = {}
        found: dict[int, list[StoredBox]] = {}
        for number, (item, stored) in enumerate(zip(items, used)):
            files.setdefault(stored.file, len(files))
            for tensor, box in self._boxes_of_item[item]:
                found.setdefault(tensor, []).append(replace(box, item=number))
        names = self.files if self.holders is None else self.holders
        kept: tuple[Any, ...] = tuple(names[file] for file in files)
        whole = self.description
        return Catalog(
            Description(whole.folder, whole.format, "", None, None, {}, {}, reader=whole.reader),
            kept if self.holders is None else (),
            tuple(replace(stored, file=files[stored.file]) for stored in used),
            tuple(replace(self.tensors[number], boxes=tuple(boxes)) for number, boxes in found.items()),
            None if self.holders is None else kept,
            self.is_one_file_per_rank,
        )

    @cached_property
    def _boxes_of_item(self) -> dict[int, list[tuple[int, StoredBox]]]:
        """The boxes in each item, with the numbers of their tensors."""
        found: defaultdict[int, list[tuple[int, StoredBox]]] = defaultdict(list)
        for number, tensor in enumerate(self.tensors):
            for stored in tensor.boxes:
                found[stored.item].append((number, stored))
        return found

    def check_names(self) -> None:
        """Raise CheckpointError if stacked and single keys give one canonical name twice."""
        counts = Counter(name for t in self.tensors for name in canonical(t.key).names(t.shape))
        doubled = sorted(name for name, count in counts.items() if count > 1)
        if doubled:
            raise CheckpointError("tensors are stored twice, stacked and single", findings=doubled)

    @property
    def is_stacked(self) -> bool:
        """Whether layers are stacked under one key per parameter."""
        return any(".layers." in t.key and ".layers.{}." in canonical(t.key).template for t in self.tensors)

    def to_bytes(self) -> bytes:
        """A compact image, linear in the number of stored boxes."""
        value = {
            "description": asdict(self.description),
            "files": self.files,
            "holders": self.holders,
            "is_one_file_per_rank": self.is_one_file_per_rank,
            "items": [[i.file, i.offset, i.length, i.crc] for i in self.stored_items],
            "tensors": [
                [
                    t.key,
                    t.shape,
                    t.dtype.torch_name,
                    t.interleave and [t.interleave.block, t.interleave.parts],
                    [[b.box.offset, b.box.shape, b.item, b.begin, b.strides] for b in t.boxes],
                ]
                for t in self.tensors
            ],
        }
        return zlib.compress(json.dumps(value, separators=(",", ":")).encode(), 1)

    @classmethod
    def from_bytes(cls, image: bytes) -> Catalog:
        """The catalog that `to_bytes` wrote."""
        value = json.loads(zlib.decompress(image))
        tensors = tuple(
            StoredTensor(
                key,
                tuple(shape),
                dtypes.from_torch(dtype),
                tuple(
                    StoredBox(Box(tuple(at), tuple(of)), item, begin, strides and tuple(strides))
                    for at, of, item, begin, strides in boxes
                ),
                interleave and Interleave(*interleave),
            )
            for key, shape, dtype, interleave, boxes in value["tensors"]
        )
        holders = value["holders"]
        return cls(
            Description(**value["description"]),
            tuple(value["files"]),
            tuple(StoredItem(*item) for item in value["items"]),
            tensors,
            None if holders is None else tuple(map(tuple, holders)),
            value["is_one_file_per_rank"],
        )


def slices_of(tensor: StoredTensor, stored: StoredBox) -> Iterator[Slice]:
    """The slices of canonical tensors that one stored box holds, in the order of its bytes."""
    key, begin = canonical(tensor.key), stored.begin
    for name, box in key.expand(stored.box):
        slice_ = Slice(name, box, tensor.dtype, stored.item, begin, stored.strides)
        begin += slice_.num_bytes
        if tensor.interleave is not None:
            yield from _disentangled(slice_, tensor.shape[key.num_stacked], tensor.interleave)
        else:
            yield slice_


def _disentangled(slice_: Slice, num_rows: int, how: Interleave) -> Iterator[Slice]:
    """The parts of a slice at their true rows, where gate and up rows take turns in blocks.

    megatron-core cuts a TP part, in which they take turns, in the middle as if it were gate and up, and
    stores the halves `num_rows / 2` rows apart (`apply_swiglu_sharded_factory`,
    megatron/core/transformer/mlp.py). So the rows of the tensor are slots of equal size: the first halves of
    all parts, then the second ones.
    """
    half, slot = num_rows // 2, num_rows // 2 // how.parts
    if num_rows % (2 * how.parts) or 2 * slot % (2 * how.block):
        raise CheckpointError(
            "the rows of gate and up projection can't be disentangled",
            where={"tensor": slice_.name},
            expected=f"{how.parts} equal TP parts, each of whole blocks of {how.block} rows",
            got=f"{num_rows} rows",
        )
    row, rows = 0, slice_.box.shape[0]
    while row < rows:
        second, at = divmod(slice_.box.offset[0] + row, half)
        part, inside = divmod(at, slot)
        number = second * slot + inside
        count = min(how.block - number % how.block, slot - inside, rows - row)
        pair, is_up = divmod(number // how.block, 2)
        true = is_up * half + part * slot + pair * how.block + number % how.block
        yield slice_.part(row, count, at=true)
        row += count
