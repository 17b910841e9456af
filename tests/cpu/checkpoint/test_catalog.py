"""Claims of `pp_export.checkpoint.catalog`: slices say where values truly belong, also where gate and up rows
take turns.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pp_export.checkpoint.catalog import (
    Catalog,
    Description,
    Interleave,
    StoredBox,
    StoredItem,
    StoredTensor,
    slices_of,
)
from pp_export.core.dtypes import from_torch
from pp_export.core.errors import CheckpointError
from pp_export.core.tensors import Box, TensorSpec
from tests.fixtures.boxes import whole, within

HIDDEN, FFN = 3, 24


def interleaved(gate: torch.Tensor, up: torch.Tensor, block: int) -> torch.Tensor:
    """A rank's parameter as a fused activation wants it: `block` rows of gate, as many of up, and so on."""
    pairs = zip(torch.split(gate, block), torch.split(up, block))
    return torch.cat([rows for pair in pairs for rows in pair])


def stored(full: torch.Tensor, tensor_parallel: int, block: int) -> tuple[StoredTensor, list[torch.Tensor]]:
    """What megatron-core stores of `full` (gate, then up) when every rank's rows take turns, and each box's
    values.

    Each rank's parameter is cut in the middle, as its factory for gated linears does without knowing better;
    the halves go to slots r and r + TP of 2 TP.
    """
    gates, ups = (half.chunk(tensor_parallel) for half in full.chunk(2))
    boxes: list[StoredBox] = []
    values: list[torch.Tensor] = []
    for rank, (gate, up) in enumerate(zip(gates, ups)):
        for half, part in enumerate(interleaved(gate, up, block).chunk(2)):
            slot = rank + half * tensor_parallel
            offset = (slot * len(part), *(0,) * (full.dim() - 1))
            boxes.append(StoredBox(Box(offset, tuple(part.shape)), len(boxes)))
            values.append(part.contiguous())
    name = "decoder.layers.0.mlp.experts.3.linear_fc1.weight"
    return StoredTensor(
        name, tuple(full.shape), from_torch("int64"), tuple(boxes), Interleave(block, tensor_parallel)
    ), values


@pytest.mark.parametrize("tensor_parallel", [1, 2, 4])
@pytest.mark.parametrize("block", [1, 2, 3, 6])
@pytest.mark.parametrize("shape", [(2 * FFN, HIDDEN), (2 * FFN,)], ids=["weight", "bias"])
def test_interleaved_rows_go_where_they_belong(
    tensor_parallel: int, block: int, shape: tuple[int, ...]
) -> None:
    """For every TP size and block, the slices put each row of gate and up back in its place."""
    full = torch.arange(torch.Size(shape).numel()).view(shape)
    tensor, values = stored(full, tensor_parallel, block)
    assert torch.equal(pasted(tensor, values), full)


@pytest.mark.parametrize("rows", [1, 5, 7, 2 * FFN])
def test_boxes_need_not_be_those_of_the_ranks(rows: int) -> None:
    """FSDP stores rows as it likes: boxes across parts, halves and blocks are put back as well."""
    full = torch.arange(2 * FFN * HIDDEN).view(2 * FFN, HIDDEN)
    tensor, values = stored(full, 2, 3)
    parts = torch.cat([values[0], values[2], values[1], values[3]]).split(rows)  # type: ignore[no-untyped-call]
    boxes = [StoredBox(Box((rows * i, 0), tuple(part.shape)), i) for i, part in enumerate(parts)]
    assert torch.equal(pasted(replace(tensor, boxes=tuple(boxes)), list(parts)), full)


def pasted(tensor: StoredTensor, values: list[torch.Tensor]) -> torch.Tensor:
    """What the slices of all boxes make of the values in them."""
    found = torch.full(tensor.shape, -1, dtype=torch.int64)
    for box, part in zip(tensor.boxes, values):
        for slice_ in slices_of(tensor, box):
            begin = slice_.begin // slice_.dtype.itemsize
            rows = part.flatten()[begin : begin + slice_.box.volume].view(slice_.box.shape)
            found[within(slice_.box, whole(tensor.shape))] = rows
    return found


def test_rows_that_can_t_be_disentangled_are_refused() -> None:
    """Parts that don't hold whole blocks of both are refused by the tensor's name."""
    tensor, _ = stored(torch.arange(2 * FFN * HIDDEN).view(2 * FFN, HIDDEN), 2, 2)
    broken = StoredTensor(tensor.key, tensor.shape, tensor.dtype, tensor.boxes, Interleave(5, 2))
    with pytest.raises(CheckpointError, match="can't be told apart") as caught:
        list(slices_of(broken, tensor.boxes[0]))
    assert caught.value.where == {"tensor": tensor.key}


@pytest.mark.parametrize("holders", [None, ((0, 2), (1,))], ids=["files", "live"])
def test_what_a_rank_reads_of_a_catalog_travels_as_bytes(holders: tuple[tuple[int, ...], ...] | None) -> None:
    """Strides, offsets in records, holders and checksums of the items that are asked for arrive on another
    rank as they were, numbered in the order in which they are asked for; nothing else of the checkpoint does.
    """
    dtype = from_torch("bfloat16")
    first = StoredBox(Box((0, 0), (2, 3)), 1, 8, (1, 2))
    others = tuple(StoredBox(Box((2 + row, 0), (1, 3)), item) for row, item in enumerate((2, 0)))
    tensors = (
        StoredTensor("decoder.v", (4, 3), dtype, (first, *others), Interleave(4, 2)),
        StoredTensor("decoder.w", (1, 3), dtype, (StoredBox(Box((0, 0), (1, 3)), 2, 24),)),
    )
    items = (StoredItem(0, 5, 20, 77), StoredItem(1, 6, 21, 78), StoredItem(1, 7, 22))
    files = ("a", "b") if holders is None else ()
    about = Description("f", "torch", "w", 3, {"a": 1}, {}, {"rng": (1, 2)}, ("note",), "torch")
    catalog = Catalog(about, files, items, tensors, holders, True)
    received = Catalog.from_bytes(catalog.image_of([2, 1]))
    assert received.files == (("b",) if holders is None else ())
    assert received.holders == (None if holders is None else ((1,),))
    assert received.stored_items == (StoredItem(0, 7, 22), StoredItem(0, 6, 21, 78))
    v, w = received.tensors
    assert v.boxes == (others[0]._replace(item=0), first._replace(item=1))
    assert w.boxes == (tensors[1].boxes[0]._replace(item=0),)
    assert (replace(v, boxes=()), replace(w, boxes=())) == tuple(replace(t, boxes=()) for t in tensors)
    assert received.is_one_file_per_rank
    assert (received.key_of_item, received.spec_of_item) == (
        {0: "decoder.w", 1: "decoder.v"},
        {0: TensorSpec((1, 3), dtype)},
    )
    assert received.description == Description("f", "torch", "", None, None, {}, {}, reader="torch")
