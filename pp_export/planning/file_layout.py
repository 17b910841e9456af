"""The byte layout of a safetensors file and of its ranges, from names, shapes and types alone.

Equal to what the safetensors library writes (safetensors/src/tensor.rs, `prepare`): larger types first, then
by name; a header padded with spaces to a multiple of 8; `{"format": "pt"}` as the only metadata, since more
than one key would come in a random order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from json.encoder import encode_basestring
from typing import NamedTuple

from pp_export.core import dtypes
from pp_export.core.tensors import TensorSpec


class TensorPlace(NamedTuple):
    """A tensor of a shard: its bytes are [begin, begin + spec.num_bytes) of the data section."""

    name: str
    spec: TensorSpec
    begin: int

    @property
    def end(self) -> int:
        return self.begin + self.spec.num_bytes


@dataclass(frozen=True)
class FileLayout:
    """A whole file: its name, and its tensors in file order."""

    file: str
    tensors: tuple[TensorPlace, ...]

    @cached_property
    def header(self) -> bytes:
        return header(self.tensors)

    @property
    def num_bytes(self) -> int:
        return len(self.header) + self.tensors[-1].end

    def range(self, number: int, count: int, tensors: tuple[TensorPlace, ...]) -> FileRange:
        """Range `number` of `count`, in which `tensors` lie."""
        header = b"" if number else self.header
        return FileRange(self.file, self.num_bytes, len(self.header), header, number, count, tensors)


@dataclass(frozen=True)
class FileRange:
    """What one leader makes of a file: range `number` (from 0) of `count`, in which `tensors` lie.

    Its bytes are [begin, end) of the file, which has `file_bytes`. The first range begins with the `header`,
    of `header_bytes`; the others have none. Most files are one range.
    """

    file: str
    file_bytes: int
    header_bytes: int
    header: bytes
    number: int
    count: int
    tensors: tuple[TensorPlace, ...]

    @classmethod
    def whole(cls, layout: FileLayout) -> FileRange:
        """The only range of a file."""
        return layout.range(0, 1, layout.tensors)

    @property
    def is_whole(self) -> bool:
        return self.count == 1

    @property
    def begin(self) -> int:
        return self.header_bytes + self.tensors[0].begin if self.number else 0

    @property
    def end(self) -> int:
        return self.header_bytes + self.tensors[-1].end

    @property
    def num_bytes(self) -> int:
        return self.end - self.begin

    @property
    def data_bytes(self) -> int:
        """Its bytes without the header."""
        return self.tensors[-1].end - self.tensors[0].begin

    @property
    def own_places(self) -> tuple[TensorPlace, ...]:
        """Where its tensors lie in its own data, which begin behind its header."""
        first = self.tensors[0].begin
        return tuple(TensorPlace(p.name, p.spec, p.begin - first) for p in self.tensors)


def arrange(tensors: Mapping[str, TensorSpec]) -> tuple[TensorPlace, ...]:
    """The tensors of one shard in canonical order, without gaps."""
    # Texts sort as their UTF-8 does.
    ordered = sorted(tensors)
    if len({spec.dtype for spec in tensors.values()}) > 1:
        ordered.sort(key=lambda name: -dtypes.order(tensors[name].dtype))
    places, begin = [], 0
    for name in ordered:
        spec = tensors[name]
        places.append(TensorPlace(name, spec, begin))
        begin += spec.num_bytes
    return tuple(places)


def header(places: tuple[TensorPlace, ...]) -> bytes:
    """The file's first bytes: the header's length in 8 bytes, then the header."""
    entries = ['"__metadata__":{"format":"pt"}']
    for name, spec, begin in places:
        # There can be hundreds of thousands of them, and a JSON encoder takes three times as long.
        shape, end = ",".join(map(str, spec.shape)), begin + spec.num_bytes
        entries.append(
            f'{encode_basestring(name)}:{{"dtype":"{spec.dtype.safetensors_name}","shape":[{shape}],'
            f'"data_offsets":[{begin},{end}]}}'
        )
    image = f"{{{','.join(entries)}}}".encode()
    image += b" " * (-len(image) % 8)
    return len(image).to_bytes(8, "little") + image
