"""Claims of `pp_export.planning.file_layout`: names, shapes and types give the header that the safetensors
library writes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from pp_export.core.dtypes import from_torch
from pp_export.core.tensors import TensorSpec
from pp_export.planning.file_layout import arrange, header
from tests.fixtures.element_types import TORCH_NAMES

SPECS = st.builds(
    TensorSpec,
    st.lists(st.integers(0, 4), max_size=3).map(tuple),
    st.sampled_from(TORCH_NAMES).map(from_torch),
)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(
    lambda name: name != "__metadata__"
)


def library_header(specs: Mapping[str, TensorSpec]) -> bytes:
    """What the library writes before the data."""
    tensors = {
        name: torch.zeros(spec.shape, dtype=getattr(torch, spec.dtype.torch_name))
        for name, spec in specs.items()
    }
    image = save(tensors, metadata={"format": "pt"})
    return image[: 8 + int.from_bytes(image[:8], "little")]


@given(st.dictionaries(NAMES, SPECS, min_size=1, max_size=8))
def test_header_bytes_equal_the_library_s(specs: dict[str, TensorSpec]) -> None:
    """For any names, shapes and types the header is byte for byte the library's, whatever order they come
    in.
    """
    expected = library_header(specs)
    assert header(arrange(specs)) == expected
    assert header(arrange(dict(reversed(specs.items())))) == expected


def test_names_outside_ascii_stay_as_they_are() -> None:
    """Names are written in UTF-8, sorted by their bytes, with quotes and control characters escaped."""
    names = ["ü.weight", "z.weight", "层.0", 'quote".w', "tab\t.w", "emoji😀", "\u2028"]
    specs = dict.fromkeys(names, TensorSpec((2,), from_torch("float32")))
    assert header(arrange(specs)) == library_header(specs)
    assert [place.name for place in arrange(specs)] == sorted(names, key=str.encode)


def test_tensors_lie_one_behind_the_other() -> None:
    """Offsets begin at 0 and leave no gap, larger types come first, and every tensor begins at its
    alignment.
    """
    specs = {name: TensorSpec((3,), from_torch(name)) for name in TORCH_NAMES}
    end = 0
    for place in arrange(specs):
        assert place.begin == end
        assert place.begin % place.spec.dtype.itemsize == 0
        end = place.end
    assert end == sum(spec.num_bytes for spec in specs.values())


def test_the_header_is_padded_and_says_its_length() -> None:
    """The header is JSON of a length that is a multiple of 8, with the format as its only metadata."""
    for length in range(1, 20):
        image = header(arrange({"n" * length: TensorSpec((1,), from_torch("float32"))}))
        assert len(image) % 8 == 0
        assert int.from_bytes(image[:8], "little") == len(image) - 8
        assert json.loads(image[8:])["__metadata__"] == {"format": "pt"}
