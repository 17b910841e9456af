"""The byte layout of a safetensors file, from names, shapes and types alone.

Equal to what the safetensors library writes (safetensors/src/tensor.rs, `prepare`): larger types first, then
by name; a header padded with spaces to a multiple of 8; `{"format": "pt"}` as the only metadata, since more
than one key would come in a random order.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from pp_export.core import dtypes
from pp_export.core.tensors import TensorSpec


@dataclass(frozen=True)
class TensorPlace:
    """A tensor of a shard: its bytes are [begin, begin + spec.num_bytes) of the data section."""

    name: str
    spec: TensorSpec
    begin: int

    @property
    def end(self) -> int:
        return self.begin + self.spec.num_bytes


def arrange(tensors: Mapping[str, TensorSpec]) -> tuple[TensorPlace, ...]:
    """The tensors of one shard in canonical order, without gaps."""
    ordered = sorted(tensors, key=lambda name: (-dtypes.order(tensors[name].dtype), name.encode()))
    places, begin = [], 0
    for name in ordered:
        places.append(TensorPlace(name, tensors[name], begin))
        begin = places[-1].end
    return tuple(places)


def header(places: tuple[TensorPlace, ...]) -> bytes:
    """The file's first bytes: the header's length in 8 bytes, then the header."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    for place in places:
        entries[place.name] = {
            "dtype": place.spec.dtype.safetensors_name,
            "shape": list(place.spec.shape),
            "data_offsets": [place.begin, place.end],
        }
    image = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    image += b" " * (-len(image) % 8)
    return len(image).to_bytes(8, "little") + image
