"""Claims of `pp_export.core.views`: views mean what torch's own slicing, transposing and stacking mean,
whatever box of the tensor is at hand, and what they leave out or take twice is found on shapes alone.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pp_export.core.errors import CheckpointError, ExportError
from pp_export.core.tensors import Box, Shape, Span, check_spans, dense_strides
from pp_export.core.views import View, check_filled, overlap
from tests.fixtures.boxes import shapes, tilings, whole, within


def numbered(shape: Shape) -> torch.Tensor:
    return torch.arange(math.prod(shape)).reshape(shape)


def seen(tensor: torch.Tensor, view: View) -> torch.Tensor:
    return tensor.as_strided(view.shape, view.strides, view.offset)


@st.composite
def viewed(draw: st.DrawFn) -> tuple[torch.Tensor, View, torch.Tensor]:
    """A tensor, a view of it, and what torch gives for the same steps."""
    tensor = numbered(draw(shapes()))
    view, expected = View.of(tuple(tensor.shape)), tensor
    for _ in range(draw(st.integers(0, 4))):
        dims = expected.dim()
        step = draw(st.sampled_from(["narrow", "select", "permute", "transpose"]))
        if step == "narrow" and dims:
            dim = draw(st.integers(0, dims - 1))
            start = draw(st.integers(0, expected.shape[dim] - 1))
            jump = draw(st.integers(1, 3))
            count = draw(st.integers(1, (expected.shape[dim] - start + jump - 1) // jump))
            view = view.narrow(dim, start, count, jump)
            taken = torch.tensor([start + number * jump for number in range(count)])
            expected = expected.index_select(dim, taken)
        elif step == "select" and dims:
            dim = draw(st.integers(0, dims - 1))
            index = draw(st.integers(0, expected.shape[dim] - 1))
            view, expected = view.select(dim, index), expected.select(dim, index)
        elif step == "permute":
            order = draw(st.permutations(range(dims)))
            view, expected = view.permute(order), expected.permute(order)
        elif step == "transpose" and dims >= 2:
            view, expected = view.transpose(), expected.transpose(-1, -2)
    return tensor, view, expected


@given(viewed())
def test_views_are_what_torch_sees(case: tuple[torch.Tensor, View, torch.Tensor]) -> None:
    """Any narrowing, selecting, stepping and permuting gives the elements that torch's own operations
    give.
    """
    tensor, view, expected = case
    assert torch.equal(seen(tensor, view), expected)
    assert view.num_elements == expected.numel()


@given(viewed(), st.data())
def test_boxes_hold_what_they_overlap(
    case: tuple[torch.Tensor, View, torch.Tensor], data: st.DataObject
) -> None:
    """The boxes of any tiling together give every element of any view of the tensor, at its place, once."""
    tensor, view, expected = case
    shape = tuple(tensor.shape)
    found = torch.full(view.shape, -1)
    num_found = 0
    for box in data.draw(tilings(shape)):
        common = overlap(view, shape, box)
        if common is None:
            continue
        values = tensor[within(box, whole(shape))].clone()
        part = values[common.index].permute(common.order).view(common.shape)
        place = common.target(View.of(view.shape))
        seen(found, place).copy_(part)
        num_found += common.num_elements
    assert torch.equal(found, expected)
    assert num_found == view.num_elements


@given(shapes(), st.lists(st.integers(1, 3), max_size=2).map(tuple), st.data())
def test_stacked_views_are_what_torch_stacks(shape: Shape, stack: Shape, data: st.DataObject) -> None:
    """A view in number `at` of a stack is that view of the tensor at this place."""
    tensors = numbered((*stack, *shape))
    at = tuple(data.draw(st.integers(0, size - 1)) for size in stack)
    view = View.of(shape).stacked(at, stack, shape)
    assert torch.equal(seen(tensors, view), tensors[at])


@given(shapes())
def test_dense_strides_are_torch_s(shape: Shape) -> None:
    """A dense tensor has torch's strides and is known as dense; a transposed one is not, unless a dim is
    1.
    """
    assert dense_strides(shape) == numbered(shape).stride()
    assert View.of(shape).is_dense
    if len(shape) >= 2:
        assert View.of(shape).transpose().is_dense == numbered(shape).transpose(-1, -2).is_contiguous()


def test_reshape_keeps_the_order_or_is_refused() -> None:
    """A dense view may be seen in another shape of as many elements; a strided one, or another number,
    not.
    """
    assert View(6, (4, 3), (3, 1)).reshape((2, 6)) == View(6, (2, 6), (6, 1))
    for view, shape in ((View.of((4, 3)).transpose(), (12,)), (View.of((4, 3)), (5,))):
        with pytest.raises(ValueError, match="can't be seen as"):
            view.reshape(shape)


@st.composite
def parts_of(draw: st.DrawFn) -> tuple[Shape, list[View]]:
    """A shape, and views of a tensor of it that may or may not fill it."""
    shape = draw(shapes())
    views = []
    for _ in range(draw(st.integers(1, 4))):
        view = View.of(shape)
        for dim, size in enumerate(shape):
            start, jump = draw(st.integers(0, size - 1)), draw(st.integers(1, 3))
            count = draw(st.integers(1, (size - start + jump - 1) // jump))
            if draw(st.booleans()):
                view = view.narrow(dim, start, count, jump)
        views.append(view.permute(draw(st.permutations(range(len(shape))))))
    return shape, views


@given(parts_of())
def test_filling_is_found_on_shapes_as_by_counting(case: tuple[Shape, list[View]]) -> None:
    """Views are accepted exactly where counting every element finds each once."""
    shape, views = case
    counts = torch.zeros(shape, dtype=torch.int64)
    for view in views:
        seen(counts, view).add_(1)
    if bool((counts == 1).all()):
        check_filled("t", shape, views)
    else:
        with pytest.raises(CheckpointError):
            check_filled("t", shape, views)


def test_every_second_row_and_its_neighbours_fill_a_tensor() -> None:
    """Interleaved rows are proved like halves, and a gap between them is found."""
    rows = View.of((6, 2))
    check_filled("t", (6, 2), [rows.narrow(0, 0, 3, step=2), rows.narrow(0, 1, 3, step=2)])
    with pytest.raises(CheckpointError, match="do not fill"):
        check_filled("t", (6, 2), [rows.narrow(0, 0, 3, step=2), rows.narrow(0, 1, 2, step=2)])


@pytest.mark.parametrize(
    "view",
    [
        View(0, (12,), (1,)),  # runs over the end of a row into the next
        View(0, (3, 3), (3, 4)),  # diagonal
        View(0, (2, 2), (1, 1)),  # two dims along one
        View(0, (5, 3), (3, 1)),  # a row too many
    ],
)
def test_views_that_do_not_go_along_dims_are_refused(view: View) -> None:
    """Only views that a box of the tensor cuts into boxes can be moved; others are refused by name."""
    with pytest.raises(ExportError, match="does not go along"):
        overlap(view, (4, 3), Box((0, 0), (4, 3)))


def test_spans_outside_their_tensor_are_refused() -> None:
    """A span before the first or behind the last index is named."""
    for span in (Span(-1, 2), Span(3, 2), Span(0, 3, 2), Span(0, 0)):
        with pytest.raises(CheckpointError, match="outside its tensor"):
            check_spans("t", (4,), [(span,)])
