"""What a checkpoint, or a live model, holds, as one value: made once on rank 0, which sends
every rank what that reads in a compact form.
"""

from __future__ import annotations

import itertools
import json
import math
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from pp_export.architecture.lora import LoraSettings
from pp_export.checkpoint.canonical_names import CanonicalKey, canonical
from pp_export.core import dtypes
from pp_export.core.dtypes import DType
from pp_export.core.errors import CheckpointError
from pp_export.core.numbering import Numbering, heard_rows, told_rows
from pp_export.core.tensors import Box, Shape, Slice, TensorSpec

NO_CRC = -1
"""In place of a CRC-32, where bytes were stored without one."""


class StoredItem(NamedTuple):
    """Bytes that were stored at once, with one CRC-32: `length` bytes from `offset` of file number `file`.

    Without a `crc` they are a complete torch.save archive of one tensor, which holds the tensor's bytes and
    their CRC; otherwise they are the bytes themselves, which may have `NO_CRC`. What a live model holds in
    memory is an item for each box: `file` is the number of the set of ranks that hold it, and `offset` means
    nothing.
    """

    file: int
    offset: int
    length: int
    crc: int | None = None


class StoredBox(NamedTuple):
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
    turns. The parts are cut in halves, see `_disentangled`, or follow one another whole.
    """

    block: int
    parts: int
    is_cut: bool = True


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
    the name of the `Format` that opens its files ("" where there are none). `weights` are the `model`'s, or
    `master`: those of its optimizer; `lora` is what the run says of adapters, where there are any.
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
    weights: str = "model"
    lora: LoraSettings | None = None


@dataclass(frozen=True)
class Catalog:
    """The model weights of a checkpoint without their values.

    `slices` name items by their position in `stored_items`. `files` lie below the checkpoint's folder, or
    have an absolute path. In a live model `holders` says for each number which ranks hold the items that name
    it; `files` has the same numbers, and "" for what lies in memory, or is empty. With `is_one_file_per_rank`
    each file is what one rank of the training job held. With `has_hf_names` the keys are names of Hugging
    Face, under which nothing is stacked or cut. `infers_shapes` says that tensors are known as far as their
    boxes reach and no further: what is missing behind the last box nobody stored.
    """

    description: Description
    files: tuple[str, ...]
    stored_items: tuple[StoredItem, ...]
    tensors: tuple[StoredTensor, ...]
    holders: tuple[tuple[int, ...], ...] | None = None
    is_one_file_per_rank: bool = False
    has_hf_names: bool = False
    infers_shapes: bool = False

    @cached_property
    def specs(self) -> dict[str, TensorSpec]:
        """Shape and type of every canonical tensor."""
        specs = {}
        for tensor, key in zip(self.tensors, self._keys):
            spec = TensorSpec(tensor.shape[key.num_stacked :], tensor.dtype)
            if key.num_stacked:
                specs.update(dict.fromkeys(key.names(tensor.shape), spec))
            else:
                specs[key.template] = spec
        return specs

    @cached_property
    def slices(self) -> dict[str, tuple[Slice, ...]]:
        """The stored slices of every canonical tensor."""
        found: defaultdict[str, list[Slice]] = defaultdict(list)
        for tensor, key in zip(self.tensors, self._keys):
            if tensor.interleave is None and not key.num_stacked:
                name, dtype = key.template, tensor.dtype
                found[name] += [
                    Slice(name, box, dtype, item, begin, strides)
                    for box, item, begin, strides in tensor.boxes
                ]
                continue
            for stored in tensor.boxes:
                for slice_ in slices_of(tensor, stored):
                    found[slice_.name].append(slice_)
        return {name: tuple(slices) for name, slices in found.items()}

    @cached_property
    def _keys(self) -> list[CanonicalKey]:
        """What the key of each tensor means."""
        if self.has_hf_names:
            return [CanonicalKey(tensor.key, 0) for tensor in self.tensors]
        return [canonical(tensor.key) for tensor in self.tensors]

    @property
    def has_checksums(self) -> bool:
        """Whether there is anything to compare with what is read."""
        return not all(item.crc == NO_CRC for item in self.stored_items)

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

    def image_of(self, items: Sequence[int]) -> bytes:
        """A compact image of what a rank needs to read `items`, for `from_bytes`, which numbers them in this
        order: their bytes, keys and boxes. Of the description the folder, the format and the reader stay.
        """
        files: Numbering[int] = Numbering()
        boxes: Numbering[Box] = Numbering()
        tensors: Numbering[int] = Numbering()
        rows = [
            (tensors[tensor], boxes[box], number, begin, strides)
            for number, item in enumerate(items)
            for tensor, (box, _, begin, strides) in self._boxes_of_item[item]
        ]
        places = [
            (files[file], offset, length, crc)
            for file, offset, length, crc in map(self.stored_items.__getitem__, items)
        ]
        about = self.description
        value = [
            [about.folder, about.format, about.reader, self.is_one_file_per_rank, self.has_hf_names],
            [self.files[file] for file in files] if self.files else [],
            None if self.holders is None else [self.holders[file] for file in files],
            told_rows(places),
            [_told(self.tensors[number]) for number in tensors],
            told_rows(rows),
            list(boxes),
        ]
        return zlib.compress(json.dumps(value, separators=(",", ":")).encode(), 1)

    @classmethod
    def from_bytes(cls, image: bytes) -> Catalog:
        """What `image_of` told."""
        about, names, holders, items, tensors, rows, boxes_told = json.loads(zlib.decompress(image))
        folder, form, reader, is_one_file_per_rank, has_hf_names = about
        made = [Box(tuple(offset), tuple(shape)) for offset, shape in boxes_told]
        boxes: list[list[StoredBox]] = [[] for _ in tensors]
        for tensor, box, item, begin, strides in heard_rows(rows):
            boxes[tensor].append(StoredBox(made[box], item, begin, strides and tuple(strides)))
        return cls(
            Description(folder, form, "", None, None, {}, {}, reader=reader),
            tuple(names),
            tuple(itertools.starmap(StoredItem, heard_rows(items))),
            tuple(
                StoredTensor(
                    key,
                    tuple(shape),
                    dtypes.from_torch(dtype),
                    tuple(boxes_of_tensor),
                    interleave and Interleave(*interleave),
                )
                for (key, shape, dtype, interleave), boxes_of_tensor in zip(tensors, boxes)
            ),
            None if holders is None else tuple(map(tuple, holders)),
            is_one_file_per_rank,
            has_hf_names,
        )

    @cached_property
    def _boxes_of_item(self) -> dict[int, list[tuple[int, StoredBox]]]:
        """The boxes in each item, with the numbers of their tensors."""
        found: dict[int, list[tuple[int, StoredBox]]] = {}
        for number, tensor in enumerate(self.tensors):
            for stored in tensor.boxes:
                found.setdefault(stored.item, []).append((number, stored))
        return found

    def check_names(self) -> None:
        """Raise CheckpointError if stacked and single keys give one canonical name twice."""
        num_names = sum(
            math.prod(tensor.shape[: key.num_stacked]) for tensor, key in zip(self.tensors, self._keys)
        )
        if num_names == len(self.specs):
            return
        counts = Counter(
            name for tensor, key in zip(self.tensors, self._keys) for name in key.names(tensor.shape)
        )
        doubled = sorted(name for name, count in counts.items() if count > 1)
        raise CheckpointError(
            "tensors are stored twice: stacked over layers, and for each layer", findings=doubled
        )

    @property
    def is_stacked(self) -> bool:
        """Whether layers are stacked under one key per parameter."""
        return any(".layers." in t.key and ".layers.{}." in canonical(t.key).template for t in self.tensors)


def _told(tensor: StoredTensor) -> list[Any]:
    """All of a tensor but its boxes, as JSON values."""
    interleave = tensor.interleave
    told = None if interleave is None else [interleave.block, interleave.parts, interleave.is_cut]
    return [tensor.key, tensor.shape, tensor.dtype.torch_name, told]


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
            "the rows of gate and up projection can't be told apart",
            where={"tensor": slice_.name},
            expected=f"{how.parts} equal TP parts, each of whole blocks of {how.block} rows",
            got=f"{num_rows} rows",
        )
    row, rows = 0, slice_.box.shape[0]
    while row < rows:
        at = slice_.box.offset[0] + row
        if how.is_cut:
            second, at = divmod(at, half)
            part, inside = divmod(at, slot)
            number, left = second * slot + inside, slot - inside
        else:
            part, number = divmod(at, 2 * slot)
            left = 2 * slot - number
        count = min(how.block - number % how.block, left, rows - row)
        pair, is_up = divmod(number // how.block, 2)
        true = is_up * half + part * slot + pair * how.block + number % how.block
        yield slice_.part(row, count, at=true)
        row += count
