"""The page of a checkpoint: what it is, and everything that it stores."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from pp_export.core import dtypes
from pp_export.core.words import counted
from pp_export.view.pages.document import page
from pp_export.view.pages.sections import Column, facts, listed, notes, pairs, table
from pp_export.view.pages.tensors import note
from pp_export.view.text import human_bytes

if TYPE_CHECKING:
    from pp_export.steps.checkpoint_report import CheckpointReport, TensorReport


def checkpoint_page(report: CheckpointReport, seconds: float) -> bytes:
    """What a checkpoint is; its metadata was read in so many `seconds`."""
    weights = report.weights
    keys = f"one key for {'all layers' if report.stacked else 'each layer'}"
    rows = {
        "folder": report.folder,
        "format": f"{report.format}, {'one file per rank' if report.one_file_per_rank else keys}",
        "written by": report.writer,
        "iteration": str(report.iteration),
        "weights": f"{counted(weights.num_tensors, 'tensor')}, "
        f"{counted(weights.num_parameters, 'parameter')}, {human_bytes(weights.bytes)}",
        "stored": f"in {weights.num_boxes:,} {'box' if weights.num_boxes == 1 else 'boxes'}"
        f" of {counted(len(weights.files), 'file')}",
        "metadata": f"read in {seconds:.1f} s; no value of a tensor was read",
    }
    columns = [
        Column("stored key", "code"),
        Column("shape", "shape", repeats=True),
        Column("dtype", choices=True, repeats=True),
        Column("bytes", "bytes"),
        Column("boxes", "count"),
    ]
    sections = [
        facts("The checkpoint", rows),
        facts(
            "Layout of the run that saved it",
            {name: str(value) for name, value in report.layout.items()},
        ),
        notes(report.notes),
        table(
            f"Stored weights: {counted(len(report.tensors), 'key')}",
            columns,
            (
                [key, list(each.shape), each.dtype, _bytes(each), each.num_boxes]
                for key, each in report.tensors.items()
            ),
            note(len(report.tensors)),
        ),
        table(
            "Stored beside the weights",
            [Column("kind"), Column("items", "count"), Column("bytes", "bytes")],
            ([kind, each.items, each.bytes] for kind, each in report.other.items()),
            "Not exported.",
        ),
        pairs("Training args", ("arg", "value"), report.args or {}),
        listed(f"Files with weights: {len(weights.files):,}", "file", weights.files),
    ]
    return page(f"Checkpoint {'/'.join(Path(report.folder).parts[-2:])}", sections)


def _bytes(tensor: TensorReport) -> int:
    return prod(tensor.shape) * dtypes.from_torch(tensor.dtype).itemsize
