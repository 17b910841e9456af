"""From slices to a frozen shard: the one value that both the file and its JSON come from."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

from pp_export.core import elements
from pp_export.core.errors import ExportError
from pp_export.core.tensors import Slice
from pp_export.core.views import Overlap, Run, View, overlap
from pp_export.planning.file_layout import FileRange, TensorPlace
from pp_export.planning.shard_plan import ShardPlan
from pp_export.shards.finite import count_not_finite
from pp_export.shards.manifests import Errors, LargestError

_FEW_RUNS = 4
_LONG_RUN_BYTES = 16 << 10


@dataclass(frozen=True)
class FrozenShard:
    """The byte image of a file or of a range of one, read-only: the header, if it has that, then the data, in
    which its tensors lie. `not_finite` counts the NaNs and infinities of those that have any, `quantized`
    tells the largest errors of those that were quantized.
    """

    range: FileRange
    image: memoryview
    not_finite: Mapping[str, int]
    quantized: Errors = field(default_factory=dict)

    @property
    def file(self) -> str:
        return self.range.file

    @property
    def data(self) -> memoryview:
        """What lies behind the header."""
        return self.image[len(self.range.header) :]


class ShardAssembler:
    """A shard under construction in `image` (as long as the file, or its range). Slices come in any order,
    each element exactly once; several threads may bring them.

    `scratch` (the shard's `scratch_bytes`) holds the tensors that are still to be encoded; all others grow
    where they stay.
    """

    def __init__(self, shard: ShardPlan, image: memoryview, scratch: memoryview) -> None:
        self._shard, self._image = shard, image
        begin = len(shard.range.header)
        image[:begin] = shard.range.header
        self._stored = _laid_out(image[begin:], shard.range.own_places)
        self._raw = _laid_out(scratch, shard.scratch)
        encoded = {name for encoding in shard.encodings for name in encoding.outputs}
        self._targets = {name: m for name, m in self._stored.items() if name not in encoded} | self._raw
        places = {place.name: place for place in (*shard.tensors, *shard.scratch)}
        self._left = {name: places[name].spec.num_elements for name in self._targets}
        self._lock = threading.Lock()

    def memory_for(self, slice_: Slice) -> list[memoryview] | None:
        """Where the slice's bytes belong, piece after piece, if they may be read to there: in few or in long
        pieces. Whoever has read them there says that they are `filled`.
        """
        found: list[tuple[Run, str]] = []
        for name, common, target in self._parts(slice_):
            runs = common.runs(slice_.box.shape, common.target(target))
            if runs.count > _FEW_RUNS and runs.length * slice_.dtype.itemsize < _LONG_RUN_BYTES:
                return None
            found += ((run, name) for run in runs)
        found.sort()
        position, size, pieces = 0, slice_.dtype.itemsize, []
        for run, name in found:
            if run.begin != position:
                return None
            position += run.length
            pieces.append(self._targets[name][run.at * size : (run.at + run.length) * size])
        return pieces if position == slice_.box.volume else None

    def filled(self, slice_: Slice) -> None:
        """The slice's bytes are in the memory that is for them."""
        for name, common, _ in self._parts(slice_):
            self._count(name, common.num_elements)

    def paste(self, slice_: Slice, data: memoryview) -> None:
        """Copy the slice's bytes, which `data` begins with, to where the plan puts them."""
        size = slice_.dtype.itemsize
        values = elements.of(data, size, slice_.box.shape)
        for name, common, target in self._parts(slice_):
            part = values[common.index].transpose(common.order).reshape(common.shape)
            elements.copy(part, elements.seen(self._targets[name], size, common.target(target)))
            self._count(name, common.num_elements)

    def freeze(self) -> FrozenShard:
        """The finished shard, encoded. The assembler keeps no way to change it and can't be used again."""
        wrong = [f"{name}: {left} elements" for name, left in self._left.items() if left]
        if wrong:
            raise ExportError(
                "a shard was not filled exactly", where={"file": self._shard.file}, findings=wrong
            )
        errors: dict[str, LargestError] = {}
        if self._shard.encodings:
            from pp_export.shards.encode import encode

            for encoding in self._shard.encodings:
                errors |= encode(encoding, self._raw, self._stored)
        counts = {
            place.name: count_not_finite(self._stored[place.name], place.spec.dtype)
            for place in self._shard.tensors
        }
        not_finite = {name: count for name, count in counts.items() if count}
        self._targets.clear()
        self._stored.clear()
        self._raw.clear()
        return FrozenShard(self._shard.range, self._image.toreadonly(), not_finite, errors)

    def _parts(self, slice_: Slice) -> list[tuple[str, Overlap, View]]:
        """What the slice holds of each tensor: its name, which elements, the view that they are part of."""
        shape = self._shard.shapes[slice_.name]
        return [
            (placement.name, common, placement.target)
            for placement in self._shard.placements[slice_.name]
            if (common := overlap(placement.view, shape, slice_.box)) is not None
        ]

    def _count(self, name: str, num_elements: int) -> None:
        with self._lock:
            self._left[name] -= num_elements


def _laid_out(memory: memoryview, places: tuple[TensorPlace, ...]) -> dict[str, memoryview]:
    """The bytes of each tensor in `memory`."""
    return {place.name: memory[place.begin : place.end] for place in places}
