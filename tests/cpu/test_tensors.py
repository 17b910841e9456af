"""Claims of `pp_export.tensors`: boxes intersect, cut and cover as arrays of counters do."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pp_export.dtypes import from_torch
from pp_export.errors import CheckpointError
from pp_export.tensors import Box, Shape, Slice, TensorSpec, check_coverage, whole
from tests.fixtures.boxes import boxes_in, shapes, tilings

BF16 = from_torch("bfloat16")


def marked(shape: Shape, box: Box) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """An array of `shape` with ones in `box`."""
    counters = np.zeros(shape, dtype=np.int64)
    counters[box.within(whole(shape))] = 1
    return counters


@given(st.data())
def test_intersection_is_what_both_boxes_mark(data: st.DataObject) -> None:
    """`intersect` gives the elements that lie in both boxes, and None where there are none."""
    shape = data.draw(shapes())
    first, second = data.draw(boxes_in(shape)), data.draw(boxes_in(shape))
    both = marked(shape, first) * marked(shape, second)
    common = first.intersect(second)
    assert common == second.intersect(first)
    if common is None:
        assert both.sum() == 0
    else:
        assert (marked(shape, common) == both).all()
        assert common.volume == both.sum()


@given(st.data())
def test_within_finds_the_same_elements(data: st.DataObject) -> None:
    """`within` indexes, in an array that holds the outer box, the elements of the inner one."""
    shape = data.draw(shapes(min_dims=1))
    outer = data.draw(boxes_in(shape))
    local = data.draw(boxes_in(outer.shape))
    inner = Box(tuple(a + b for a, b in zip(outer.offset, local.offset)), local.shape)
    values = np.arange(whole(shape).volume).reshape(shape)
    part = values[outer.within(whole(shape))]
    assert (part[inner.within(outer)] == values[inner.within(whole(shape))]).all()


@given(st.data(), st.integers(1, 200))
def test_rows_cut_a_slice_in_byte_order(data: st.DataObject, max_bytes: int) -> None:
    """`rows` gives consecutive slices that repeat the slice's bytes once, each within the limit or one
    row.
    """
    shape = data.draw(shapes())
    box = data.draw(boxes_in(shape))
    piece = Slice("x", box, BF16, record=7, begin=data.draw(st.integers(0, 9)) * 2)
    rows = piece.rows(max_bytes)
    dim = next((d for d, n in enumerate(box.shape) if n > 1), None)
    values = np.arange(whole(shape).volume, dtype=np.int16).reshape(shape)
    image = values[box.within(whole(shape))].tobytes()
    begin = piece.begin
    for row in rows:
        assert (row.name, row.dtype, row.record, row.begin) == ("x", BF16, 7, begin)
        at = begin - piece.begin
        assert values[row.box.within(whole(shape))].tobytes() == image[at : at + row.num_bytes]
        begin += row.num_bytes
        assert row.num_bytes <= max_bytes or dim is None or row.box.shape[dim] == 1
    assert begin - piece.begin == piece.num_bytes


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
