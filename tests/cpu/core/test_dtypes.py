"""Claims of `pp_export.core.dtypes`: names, sizes and order are those of torch and of the safetensors
library.
"""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save

from pp_export.core import dtypes
from pp_export.core.dtypes import DType
from pp_export.core.errors import CheckpointError
from tests.fixtures.element_types import TORCH_NAMES


def _torch(dtype: DType) -> torch.dtype:
    found = getattr(torch, dtype.torch_name)
    assert isinstance(found, torch.dtype)
    return found


def _header(tensors: dict[str, torch.Tensor]) -> dict[str, dict[str, object]]:
    image = save(tensors)
    header: dict[str, dict[str, object]] = json.loads(image[8 : 8 + int.from_bytes(image[:8], "little")])
    return header


@pytest.mark.parametrize("name", TORCH_NAMES)
def test_name_and_size_equal_torch_and_the_library(name: str) -> None:
    """Each type's safetensors name is what the library writes for it, and its size is torch's."""
    dtype = dtypes.from_torch(name)
    assert dtype.itemsize == _torch(dtype).itemsize
    assert dtype.is_floating == _torch(dtype).is_floating_point
    written = _header({"x": torch.zeros(2, dtype=_torch(dtype))})["x"]
    assert written["dtype"] == dtype.safetensors_name
    assert written["data_offsets"] == [0, 2 * dtype.itemsize]
    assert dtypes.from_safetensors(dtype.safetensors_name) == dtype
    assert dtypes.from_torch(f"torch.{name}") == dtype
    assert dtypes.is_torch_name(name)


def test_order_is_the_order_in_which_the_library_writes() -> None:
    """Of any two types the one with the larger `order` comes first in a file, whatever the tensors' names
    are.
    """
    known = [dtypes.from_torch(name) for name in TORCH_NAMES]
    for ascending in (False, True):
        named = {
            f"{i:02d}": dtype for i, dtype in enumerate(sorted(known, key=dtypes.order, reverse=ascending))
        }
        header = _header({name: torch.zeros(1, dtype=_torch(dtype)) for name, dtype in named.items()})
        order = [dtypes.order(named[name]) for name in header if name != "__metadata__"]
        assert order == sorted(range(len(TORCH_NAMES)), reverse=True)


def test_unknown_types_are_refused_by_name() -> None:
    """A type that safetensors can't hold is refused, naming it and those that are known."""
    with pytest.raises(CheckpointError, match="complex64 is not supported") as caught:
        dtypes.from_torch("torch.complex64")
    assert "bfloat16" in str(caught.value.expected)
    assert dtypes.from_safetensors("F4") is None
    assert not dtypes.is_torch_name("Size")
