"""A checkpoint as plain values: what `inspect` tells of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pp_export.core.json_values import to_json_value

if TYPE_CHECKING:
    from pp_export.checkpoint.catalog import Catalog
    from pp_export.core.tensors import Shape

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class WeightsReport:
    """The model's weights as they are stored: canonical tensors, in boxes, in files."""

    num_tensors: int
    num_boxes: int
    num_parameters: int
    bytes: int
    files: tuple[str, ...]


@dataclass(frozen=True)
class TensorReport:
    """What is stored under one key: element type (torch's word), shape with its stacking axes, boxes."""

    dtype: str
    shape: Shape
    num_boxes: int


@dataclass(frozen=True)
class OtherReport:
    """What is stored of a kind that is no weight, such as the optimizer's state."""

    items: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class CheckpointReport:
    """What a checkpoint is. `args` are the training args it was saved with, `layout` the parallel sizes of
    the run, both in Megatron's words; `stacked` tells whether one key holds all layers.
    """

    folder: str
    format: str
    iteration: int | None
    writer: str
    layout: Mapping[str, int]
    stacked: bool
    one_file_per_rank: bool
    args: Mapping[str, Any] | None
    weights: WeightsReport
    tensors: Mapping[str, TensorReport]
    other: Mapping[str, OtherReport]
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        return (
            f"CheckpointReport(folder={self.folder!r}, format={self.format!r}, iteration={self.iteration},"
            f" tensors={self.weights.num_tensors}, bytes={self.weights.bytes})"
        )

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values, as `pp_export inspect --json` gives it; see `schemas/inspect.json`."""
        return {"schema_version": SCHEMA_VERSION, **to_json_value(self)}


def checkpoint_report(catalog: Catalog) -> CheckpointReport:
    """The report of a checkpoint's catalog."""
    description = catalog.description
    return CheckpointReport(
        folder=description.folder,
        format=description.format,
        iteration=description.iteration,
        writer=description.writer,
        layout=dict(description.layout),
        stacked=catalog.is_stacked,
        one_file_per_rank=catalog.is_one_file_per_rank,
        args=description.args,
        weights=WeightsReport(
            num_tensors=len(catalog.specs),
            num_boxes=sum(len(tensor.boxes) for tensor in catalog.tensors),
            num_parameters=sum(spec.num_elements for spec in catalog.specs.values()),
            bytes=sum(spec.num_bytes for spec in catalog.specs.values()),
            files=tuple(catalog.files),
        ),
        tensors={t.key: TensorReport(t.dtype.torch_name, t.shape, len(t.boxes)) for t in catalog.tensors},
        other={kind: OtherReport(items, size) for kind, (items, size) in description.other.items()},
        notes=tuple(description.notes),
    )
