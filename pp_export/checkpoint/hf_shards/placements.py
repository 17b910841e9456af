"""Where a rank's part of a DTensor or ShardedTensor lies in the whole tensor, from what a pickle says of it.

The geometry is torch's (`_compute_local_shape_and_global_offset`, torch/distributed/tensor/_utils.py): for
each mesh dim that shards a dim of the tensor, what is left of that dim is cut in equal chunks, rounded up, of
which the last may be smaller or empty. FSDP on top of tensor parallelism is written left to right and
cut right to left (`_StridedShard`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pp_export.core.errors import CheckpointError
from pp_export.core.tensors import Box, Shape
from pp_export.torch_file.archive import Archive, StoredView

_FROM_TYPE, _WRAPPER = "torch._tensor._rebuild_from_type_v2", "torch._utils._rebuild_wrapper_subclass"


@dataclass(frozen=True)
class Placement:
    """How one mesh dim cuts a tensor: along `dim`, or (None) not at all. `split_factor` is more than 1 where
    that many later cuts come first.
    """

    dim: int | None
    split_factor: int = 1


@dataclass(frozen=True)
class Part:
    """A part of a tensor of `shape`: its box, and where its values lie in the rank's file."""

    shape: Shape
    box: Box
    stored: StoredView


def parts_of(value: Any, archive: Archive) -> list[Part] | None:
    """What a rank's file holds of a tensor, one part for most; None where `value` is no tensor at all. A
    tensor without placements is whole on every rank.

    Raises CheckpointError where it isn't as torch writes it, or is cut in a way that isn't known.
    """
    try:
        whole = _whole(value)
        if whole is None:
            stored = archive.view(value)
            return None if stored is None else [Part(stored.view.shape, _whole_box(stored), stored)]
        kind, shape, state = whole
        found = list(_of_dtensor(shape, state) if kind == "DTensor" else _of_sharded_tensor(state))
    except CheckpointError:
        raise
    except Exception as error:  # whatever a pickle of something else leads to
        raise CheckpointError(f"a distributed tensor is not what torch writes: {error!r}") from error
    parts = []
    for box, tensor in found:
        stored = archive.view(tensor)
        if stored is None or stored.view.shape != box.shape:
            raise CheckpointError(
                f"a part of a {kind} has another shape than its placement says",
                expected=list(box.shape),
                got=None if stored is None else list(stored.view.shape),
            )
        parts.append(Part(shape, box, stored))
    return parts


def local_box(
    shape: Shape, mesh: Sequence[int], at: Sequence[int], placements: Sequence[Placement], order: Any = None
) -> Box:
    """The box of the rank at coordinate `at` of a `mesh` of these sizes. `order` says for dims of the tensor
    in which order mesh dims cut them; else left to right, but for what `split_factor` says.
    """
    offset, sizes = [0] * len(shape), list(shape)
    for dim in range(len(shape)):
        cuts = [number for number, placement in enumerate(placements) if placement.dim == dim]
        for number in (order or {}).get(dim) or _in_order(cuts, mesh, placements):
            chunk = -(-sizes[dim] // mesh[number])
            begin = min(chunk * at[number], sizes[dim])
            offset[dim] += begin
            sizes[dim] = min(chunk, sizes[dim] - begin)
    return Box(tuple(offset), tuple(sizes))


def _in_order(cuts: Sequence[int], mesh: Sequence[int], placements: Sequence[Placement]) -> list[int]:
    """The mesh dims that cut one dim of a tensor, in the order in which they do."""
    order: list[int] = []
    for number in reversed(cuts):
        factor = placements[number].split_factor
        if factor > 1 and factor != math.prod(mesh[later] for later in order):
            raise CheckpointError(
                "a DTensor is cut in an unknown way",
                got=f"split factor {factor} of a mesh of {list(mesh)}",
                advice="save the model without tensor parallelism, or gather its tensors before saving",
            )
        order = [*order, number] if factor > 1 else [number, *order]
    return order


def _whole(value: Any) -> tuple[str, Shape, Any] | None:
    """The class of a distributed tensor, its shape, and what its state is."""
    if getattr(value, "kind", "") != _FROM_TYPE:
        return None
    function, kind, args, state = value.args
    if getattr(function, "kind", "") != _WRAPPER:
        return None
    name = str(getattr(kind, "kind", kind)).rpartition(".")[2]
    if name not in ("DTensor", "ShardedTensor"):
        raise CheckpointError(
            "a tensor is of a class whose values are not known", got=name, expected="DTensor or ShardedTensor"
        )
    return name, tuple(map(int, args[2])), state


def _of_dtensor(shape: Shape, state: Any) -> Iterator[tuple[Box, Any]]:
    fields = _fields(state)
    spec, tensor = fields["_spec"], fields["_local_tensor"]
    at = spec.mesh.get("_coordinate_on_dim")
    if at is None:
        return  # a rank outside of the tensor's mesh has nothing of it
    mesh = _mesh_sizes(spec.mesh)
    placements = [_placement(placement) for placement in spec.placements]
    if not len(mesh) == len(at) == len(placements):
        raise ValueError(f"{len(placements)} placements on a mesh of {len(mesh)} dims at {at}")
    order = None
    if not any(placement.split_factor > 1 for placement in placements):
        order = dict(tuple(entry.args) for entry in spec.get("shard_order") or ())
    yield local_box(shape, mesh, [int(number) for number in at], placements, order), tensor


def _of_sharded_tensor(state: Any) -> Iterator[tuple[Box, Any]]:
    for shard in state[0]:
        metadata = shard.metadata
        offset, sizes = map(int, metadata.shard_offsets), map(int, metadata.shard_sizes)
        yield Box(tuple(offset), tuple(sizes)), shard.tensor


def _placement(placement: Any) -> Placement:
    name = type(placement).__name__
    if name == "Replicate":
        return Placement(None)
    if name == "Shard":
        return Placement(int(placement.dim))
    if name == "_StridedShard":
        return Placement(int(placement.dim), int(placement.split_factor))
    raise CheckpointError(
        "a DTensor has a placement that doesn't hold the tensor's own values",
        expected="Shard or Replicate",
        got=name,
        advice="save the model's parameters, not partial sums that are still to be reduced",
    )


def _mesh_sizes(mesh: Any) -> list[int]:
    """The sizes of a DeviceMesh, as releases of torch have pickled it: a tensor of ranks, or a layout."""
    layout = mesh.get("_layout")
    if layout is None:
        return [int(size) for size in mesh.mesh.args[2]]
    axes = layout.get("axes")
    if axes is not None:
        axes = axes.values() if isinstance(axes, Mapping) else axes
        return [math.prod(axis.shape) for axis in axes]
    return [size if isinstance(size, int) else math.prod(size) for size in layout.shape]


def _fields(state: Any) -> Mapping[str, Any]:
    """An object's attributes, also of one with slots."""
    if isinstance(state, tuple) and len(state) == 2:
        return {**(state[0] or {}), **(state[1] or {})}
    return dict(state)


def _whole_box(stored: StoredView) -> Box:
    return Box((0,) * len(stored.view.shape), stored.view.shape)
