"""Claims of `pp_export.core.tensors`: boxes intersect, cut and cover as arrays of counters do."""

from __future__ import annotations

import itertools
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pp_export.core.dtypes import from_torch
from pp_export.core.errors import CheckpointError
from pp_export.core.tensors import Box, Shape, Slice, TensorSpec, check_coverage
from tests.fixtures.boxes import boxes_in, shapes, tilings, whole, within

BF16 = from_torch("bfloat16")


def marked(shape: Shape, box: Box) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """An array of `shape` with ones in `box`."""
    counters = np.zeros(shape, dtype=np.int64)
    counters[within(box, whole(shape))] = 1
    return counters


@given(st.data(), st.integers(1, 200))
def test_rows_cut_a_slice_in_byte_order(data: st.DataObject, max_bytes: int) -> None:
    """`rows` gives consecutive slices that repeat the slice's bytes once, each within the limit or one
    row.
    """
    shape = data.draw(shapes())
    box = data.draw(boxes_in(shape))
    slice_ = Slice("x", box, BF16, item=7, begin=data.draw(st.integers(0, 9)) * 2)
    rows = slice_.rows(max_bytes)
    dim = next((d for d, n in enumerate(box.shape) if n > 1), None)
    values = np.arange(whole(shape).volume, dtype=np.int16).reshape(shape)
    image = values[within(box, whole(shape))].tobytes()
    begin = slice_.begin
    for row in rows:
        assert (row.name, row.dtype, row.item, row.begin) == ("x", BF16, 7, begin)
        at = begin - slice_.begin
        assert values[within(row.box, whole(shape))].tobytes() == image[at : at + row.num_bytes]
        begin += row.num_bytes
        assert row.num_bytes <= max_bytes or dim is None or row.box.shape[dim] == 1
    assert begin - slice_.begin == slice_.num_bytes


@given(st.data())
def test_exact_coverings_pass(data: st.DataObject) -> None:
    """However a tensor is cut into boxes, in whatever order they come, the boxes are accepted."""
    shape = data.draw(shapes())
    check_coverage("x", shape, data.draw(tilings(shape)))


@given(st.data())
def test_anything_but_an_exact_covering_is_refused(data: st.DataObject) -> None:
    """Boxes pass if and only if counters say that each element is there once."""
    shape = data.draw(shapes())
    boxes = data.draw(st.lists(boxes_in(shape), max_size=4) | tilings(shape))
    change = data.draw(st.sampled_from(["none", "drop", "double"]))
    if boxes and change != "none":
        boxes = boxes[1:] if change == "drop" else [*boxes, boxes[0]]
    counters = sum((marked(shape, box) for box in boxes), np.zeros(shape, dtype=np.int64))
    if (counters == 1).all():
        check_coverage("x", shape, boxes)
    else:
        with pytest.raises(CheckpointError) as caught:
            check_coverage("layer.weight", shape, boxes)
        assert caught.value.where == {"tensor": "layer.weight"}


def test_overlap_is_refused_although_the_volume_fits() -> None:
    """A gap and an overlap of equal volume don't cancel out, and the message says that elements come
    twice.
    """
    boxes = [Box((0, 0), (2, 2)), Box((0, 1), (2, 2))]
    with pytest.raises(CheckpointError, match="some twice"):
        check_coverage("x", (2, 4), boxes)


@pytest.mark.parametrize(
    "box",
    [
        Box((0, 0), (2, 5)),
        Box((1, 0), (2, 4)),
        Box((-1, 0), (2, 4)),
        Box((0, 0), (0, 4)),
        Box((5, 0), (1, 4)),
    ],
    ids=str,
)
def test_a_box_outside_its_tensor_is_refused(box: Box) -> None:
    """A box that overhangs, begins before the tensor or is empty is refused as such."""
    with pytest.raises(CheckpointError, match="reaches outside"):
        check_coverage("x", (2, 4), [box])


def test_a_box_of_another_rank_is_refused() -> None:
    """A box with more or fewer dims than its tensor is refused."""
    for box in (Box((0,), (2,)), Box((0, 0, 0), (2, 4, 1))):
        with pytest.raises(CheckpointError, match="another number of dims"):
            check_coverage("x", (2, 4), [box])


def test_coverage_costs_no_more_cells_than_cuts_make() -> None:
    """A large tensor in many equal parts is checked by its parts, not by its elements."""
    boxes = [Box((i << 20, j << 20), (1 << 20, 1 << 20)) for i, j in itertools.product(range(40), range(40))]
    check_coverage("x", (40 << 20, 40 << 20), boxes)


def test_sizes_in_bytes() -> None:
    """Bytes are elements times the type's size, also for scalars and empty tensors."""
    assert TensorSpec((3, 5), BF16).num_bytes == 30
    assert TensorSpec((), BF16).num_bytes == 2
    assert TensorSpec((0, 5), BF16).num_bytes == 0
    assert Slice("x", Box((4,), (3,)), from_torch("float64"), 0).num_bytes == 24
    assert str(TensorSpec((3, 5), BF16)) == "bfloat16[3, 5]"


@given(st.data(), st.integers(1, 60))
def test_rows_of_strided_values_are_where_the_strides_say(data: st.DataObject, max_bytes: int) -> None:
    """Slices of values that lie `strides` apart (a view of a larger tensor, transposed or not) are cut into
    rows that find the same values, in order, each once.
    """
    shape = data.draw(shapes(min_dims=1))
    order = data.draw(st.permutations(range(len(shape))))
    gaps = data.draw(st.lists(st.integers(0, 2), min_size=len(shape), max_size=len(shape)))
    strides, step = [0] * len(shape), 1
    for dim, gap in zip(order, gaps):
        strides[dim] = step
        step *= shape[dim] + gap
    begin = data.draw(st.integers(0, 3))
    memory = np.arange(begin + step, dtype=np.int16)

    def values(slice_: Slice) -> np.ndarray[Any, np.dtype[np.int16]]:
        assert slice_.strides == tuple(strides)
        assert slice_.begin % 2 == 0
        apart = [2 * stride for stride in strides]
        return np.lib.stride_tricks.as_strided(memory[slice_.begin // 2 :], slice_.box.shape, apart)

    offset = tuple(data.draw(st.integers(0, 5)) for _ in shape)
    slice_ = Slice("x", Box(offset, shape), BF16, item=3, begin=2 * begin, strides=tuple(strides))
    full = values(slice_)
    found = np.full(shape, -1, dtype=np.int16)
    for row in slice_.rows(max_bytes):
        assert (row.name, row.item) == ("x", 3)
        at = within(row.box, slice_.box)
        assert (found[at] == -1).all()
        found[at] = values(row)
    assert (found == full).all()


@given(st.data())
def test_a_part_is_rows_of_the_slice(data: st.DataObject) -> None:
    """`part` gives the asked rows of its dim: their values, and, with `at`, another place in the tensor."""
    shape = data.draw(shapes(min_dims=1))
    dim = data.draw(st.integers(0, len(shape) - 1))
    row = data.draw(st.integers(0, shape[dim] - 1))
    count = data.draw(st.integers(1, shape[dim] - row))
    at = data.draw(st.none() | st.integers(0, 9))
    values = np.arange(2 + whole(shape).volume, dtype=np.int16)[2:].reshape(shape)
    strides = tuple(stride // 2 for stride in values.strides)
    slice_ = Slice("x", Box((4,) * len(shape), shape), BF16, item=1, begin=4, strides=strides)
    part = slice_.part(row, count, dim=dim, at=at)
    first = values[(slice(None),) * dim + (slice(row, row + count),)]
    assert part.begin // 2 - 2 == int(first.flat[0]) - int(values.flat[0])
    assert part.box.shape == first.shape
    assert part.box.offset == tuple(
        4 if d != dim else 4 + row if at is None else at for d in range(len(shape))
    )
    assert (part.strides, part.item, part.dtype) == (strides, 1, BF16)
    if dim == 0:
        contiguous = slice_._replace(strides=None).part(row, count, at=at)
        assert contiguous._replace(strides=strides) == part


def test_crooked_boxes_take_no_time() -> None:
    """Boxes that would be cut into each other's pieces, a hundred million of them, are refused at once."""
    size = 40
    crooked = [Box((i,) * 6, (size - i,) * 6) for i in range(size)]
    begun = time.process_time()
    for shape in ((size,) * 6, (2 * size,) * 6):
        with pytest.raises(CheckpointError, match="do not fill the tensor exactly"):
            check_coverage("w", shape, crooked * 2)
    assert time.process_time() - begun < 20
