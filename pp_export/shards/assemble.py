"""From slices to a frozen shard: the one value that both the file and its JSON come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from pp_export.core import dtypes
from pp_export.core.errors import ExportError
from pp_export.core.tensors import Box, Slice, TensorSpec, whole
from pp_export.planning.export_plan import ShardPlan
from pp_export.planning.file_layout import TensorPlace, arrange, header


@dataclass(frozen=True)
class FrozenShard:
    """The byte image of a file, read-only: a header, then the data section, in which the `tensors` lie."""

    file: str
    image: memoryview
    tensors: tuple[TensorPlace, ...]

    @property
    def data(self) -> memoryview:
        """The data section."""
        return self.image[len(self.image) - (self.tensors[-1].end if self.tensors else 0) :]


class ShardAssembler:
    """A shard under construction in `image` (as long as the file). Pieces come in any order, each element
    exactly once.
    """

    def __init__(self, shard: ShardPlan, image: memoryview) -> None:
        self._shard, self._image = shard, image
        self._targets = _lay_out(image, shard.header, shard.tensors)
        self._left = {place.name: place.spec.num_elements for place in shard.tensors}

    def paste(self, slice_: Slice, data: torch.Tensor) -> None:
        """Copy `data` (uint8, the slice's bytes) to where the plan puts them, casting if the plan says so."""
        values = data[: slice_.num_bytes].view(getattr(torch, slice_.dtype.torch_name)).view(slice_.box.shape)
        for placement in self._shard.placements[slice_.name]:
            common = placement.box.intersect(slice_.box)
            if common is None:
                continue
            stacked = placement.target[: len(placement.target) - len(common.shape)]
            inner = placement.target[len(stacked) :]
            offset = tuple(o - b + t for o, b, t in zip(common.offset, placement.box.offset, inner))
            target = self._targets[placement.name][stacked]
            part = values[common.within(slice_.box)]
            if part.dtype != target.dtype:  # which bits torch gives a NaN depends on the shape of the part
                part = part.to(target.dtype)
                part.masked_fill_(part.isnan(), torch.nan)
            target[Box(offset, common.shape).within(whole(target.shape))].copy_(part)
            self._left[placement.name] -= common.volume

    def freeze(self) -> FrozenShard:
        """The finished shard. The assembler keeps no way to change it and can't be used again."""
        wrong = [f"{name}: {left} elements" for name, left in self._left.items() if left]
        if wrong:
            raise ExportError(
                "a shard was not filled exactly", where={"file": self._shard.file}, findings=wrong
            )
        self._targets.clear()
        return FrozenShard(self._shard.file, self._image.toreadonly(), self._shard.tensors)


def freeze_tensors(file: str, tensors: Mapping[str, torch.Tensor]) -> FrozenShard:
    """A frozen copy of whole tensors, from any device and in any memory layout; later changes to them do not
    reach it.
    """
    specs = {
        name: TensorSpec(tuple(tensor.shape), dtypes.from_torch(str(tensor.dtype)))
        for name, tensor in tensors.items()
    }
    places = arrange(specs)
    first = header(places)
    image = memoryview(bytearray(len(first) + sum(spec.num_bytes for spec in specs.values())))
    for name, target in _lay_out(image, first, places).items():
        target.copy_(tensors[name])
    return FrozenShard(file, image.toreadonly(), places)


def _lay_out(image: memoryview, first: bytes, places: tuple[TensorPlace, ...]) -> dict[str, torch.Tensor]:
    """Write the header `first` into `image`; each tensor as a view of its bytes there."""
    image[: len(first)] = first
    flat = torch.frombuffer(image, dtype=torch.uint8)[len(first) :]
    return {
        place.name: flat[place.begin : place.end].view(torch_dtype(place.spec)).view(place.spec.shape)
        for place in places
    }


def torch_dtype(spec: TensorSpec) -> torch.dtype:
    """torch's object for the element type of `spec`."""
    dtype: torch.dtype = getattr(torch, spec.dtype.torch_name)
    return dtype
