"""From slices to a frozen shard: the one value that both the file and its JSON come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from pp_export.core.dtypes import DType
from pp_export.core.errors import ExportError
from pp_export.core.tensors import Slice
from pp_export.core.views import overlap
from pp_export.planning.file_layout import FileRange, TensorPlace
from pp_export.planning.shard_plan import ShardPlan
from pp_export.shards.encode import encode

_STEP_ELEMENTS = 1 << 19


@dataclass(frozen=True)
class FrozenShard:
    """The byte image of a file or of a range of one, read-only: the header, if it has that, then the data, in
    which its tensors lie. `not_finite` counts the NaNs and infinities of those that have any.
    """

    range: FileRange
    image: memoryview
    not_finite: Mapping[str, int]

    @property
    def file(self) -> str:
        return self.range.file

    @property
    def data(self) -> memoryview:
        """What lies behind the header."""
        return self.image[len(self.range.header) :]


class ShardAssembler:
    """A shard under construction in `image` (as long as the file, or its range). Slices come in any order,
    each element exactly once.

    `scratch` (the shard's `scratch_bytes`) holds the tensors that are still to be encoded; all others grow
    where they stay.
    """

    def __init__(self, shard: ShardPlan, image: memoryview, scratch: torch.Tensor) -> None:
        self._shard, self._image = shard, image
        begin = len(shard.range.header)
        image[:begin] = shard.range.header
        self._stored = _laid_out(torch.frombuffer(image, dtype=torch.uint8)[begin:], shard.range.own_places)
        self._raw = _laid_out(scratch, shard.scratch)
        encoded = {name for encoding in shard.encodings for name in encoding.outputs}
        self._targets = {name: t for name, t in self._stored.items() if name not in encoded} | self._raw
        self._left = {name: target.numel() for name, target in self._targets.items()}

    def paste(self, slice_: Slice, data: torch.Tensor) -> None:
        """Copy `data` (uint8, the slice's bytes) to where the plan puts them."""
        values = data[: slice_.num_bytes].view(torch_dtype(slice_.dtype)).view(slice_.box.shape)
        shape = self._shard.shapes[slice_.name]
        for placement in self._shard.placements[slice_.name]:
            common = overlap(placement.view, shape, slice_.box)
            if common is None:
                continue
            part = values[common.index].permute(common.order)
            target, place = self._targets[placement.name], common.target(placement.target)
            at = target.storage_offset() + place.offset
            target.as_strided(place.shape, place.strides, at).copy_(part.view(common.shape))
            self._left[placement.name] -= common.num_elements

    def freeze(self) -> FrozenShard:
        """The finished shard, encoded. The assembler keeps no way to change it and can't be used again."""
        wrong = [f"{name}: {left} elements" for name, left in self._left.items() if left]
        if wrong:
            raise ExportError(
                "a shard was not filled exactly", where={"file": self._shard.file}, findings=wrong
            )
        for encoding in self._shard.encodings:
            encode(encoding, self._raw, self._stored)
        counts = {name: count_not_finite(tensor) for name, tensor in self._stored.items()}
        not_finite = {name: count for name, count in counts.items() if count}
        self._targets.clear()
        self._stored.clear()
        self._raw.clear()
        return FrozenShard(self._shard.range, self._image.toreadonly(), not_finite)


def count_not_finite(tensor: torch.Tensor) -> int:
    """How many elements are NaN or infinite. Their extremes tell whether any is, at ten times the speed."""
    values, count = tensor.reshape(-1), 0
    if not values.is_floating_point() or values.element_size() < 2:
        return 0
    for step in torch.split(values, _STEP_ELEMENTS):
        if step.numel() and not torch.stack(torch.aminmax(step)).isfinite().all():
            count += int(step.numel() - step.isfinite().sum())
    return count


def _laid_out(memory: torch.Tensor, places: tuple[TensorPlace, ...]) -> dict[str, torch.Tensor]:
    """Each tensor as a view of its bytes in `memory` (uint8)."""
    return {
        place.name: memory[place.begin : place.end].view(torch_dtype(place.spec.dtype)).view(place.spec.shape)
        for place in places
    }


def torch_dtype(dtype: DType) -> torch.dtype:
    """torch's object for an element type."""
    found: torch.dtype = getattr(torch, dtype.torch_name)
    return found
