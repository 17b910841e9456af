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
    """The model's weights as they are stored: canonical tensors, in slices, in files."""

    num_tensors: int
    num_boxes: int
    num_parameters: int
    bytes: int
    files: tuple[str, ...]


@dataclass(frozen=True)
class TensorReport:
    """What is stored under one key: element type (torch's word), shape with its stacking axes, slices."""

    dtype: str
    shape: Shape
    num_boxes: int


@dataclass(frozen=True)
class OtherReport:
    """What is stored of a kind that is no weight, such as the optimizer's state."""

    items: int
    bytes: int


FAULTS = {
    "missing": "a file, or a slice of a tensor, isn't there or ends too early",
    "uncovered": "the stored slices don't fill the tensor",
    "unreadable": "bytes can't be read, or aren't in the form that torch writes",
    "damaged": "the bytes aren't those that were stored",
}


@dataclass(frozen=True)
class CheckpointFault:
    """What can't be read as it was stored: a kind of `FAULTS`, the stored key or the tensor, and the file."""

    kind: str
    tensor: str | None
    file: str | None
    message: str

    def __str__(self) -> str:
        where = ", ".join(filter(None, (self.file, self.tensor)))
        return f"{self.kind}{f' ({where})' if where else ''}: {self.message}"


@dataclass(frozen=True)
class ExaminedTensor:
    """What was seen of a tensor's values. `digest` is the XXH3-128 of all of them in C order, the same for
    every layout; None where not all are there as they were stored. The rest is told of those that are.
    """

    dtype: str
    shape: Shape
    digest: str | None
    num_nan: int
    num_infinite: int
    is_zero: bool
    is_constant: bool

    @property
    def suspicions(self) -> tuple[str, ...]:
        """What training seldom means, in words."""
        told = (
            (self.num_nan > 0, f"{self.num_nan:,} NaN"),
            (self.num_infinite > 0, f"{self.num_infinite:,} infinite"),
            (self.is_zero, "all zeros"),
            (self.is_constant and not self.is_zero, "one value throughout"),
        )
        return tuple(text for is_so, text in told if is_so)


@dataclass(frozen=True)
class Examination:
    """What all bytes of the weights tell: `tensors` by canonical name (one for each layer and expert), in
    the order of the checkpoint. `has_checksums`: whether anything was stored to compare the bytes with.
    """

    has_checksums: bool
    num_bytes_read: int
    seconds: float
    faults: tuple[CheckpointFault, ...]
    tensors: Mapping[str, ExaminedTensor]

    @property
    def ok(self) -> bool:
        """Whether every byte is there, as it was stored; suspicious values may be meant."""
        return not self.faults


@dataclass(frozen=True, kw_only=True)
class CheckpointReport:
    """What a checkpoint is. `args` are the training args it was saved with, `layout` the parallel sizes of
    the run, both in Megatron's words; `stacked` tells whether one key holds all layers. `examined` is what
    its bytes tell, if they were read.
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
    examined: Examination | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing that was looked at is missing or damaged."""
        return self.examined is None or self.examined.ok

    def __repr__(self) -> str:
        return (
            f"CheckpointReport(folder={self.folder!r}, format={self.format!r}, iteration={self.iteration},"
            f" tensors={self.weights.num_tensors}, bytes={self.weights.bytes})"
        )

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values, as `pp_export inspect --json` gives it; see `schemas/inspect.json`."""
        return {"schema_version": SCHEMA_VERSION, **to_json_value(self)}


def checkpoint_report(catalog: Catalog, examined: Examination | None = None) -> CheckpointReport:
    """The report of a checkpoint's catalog, and of its bytes if they were read."""
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
        examined=examined,
    )
