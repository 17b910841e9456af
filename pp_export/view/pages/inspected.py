"""The page of a checkpoint: what it is, all that it stores, and what its bytes tell if they were read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pp_export.core.words import counted
from pp_export.view.pages.document import page
from pp_export.view.pages.sections import Column, Section, facts, listed, notes, pairs, table, verdict
from pp_export.view.pages.tensors import STORED, note, num_bytes
from pp_export.view.text import human_bytes

if TYPE_CHECKING:
    from pp_export.steps.checkpoint_report import CheckpointReport, Examination


def checkpoint_page(report: CheckpointReport, seconds: float) -> bytes:
    """What a checkpoint is; all that was looked at was read in so many `seconds`."""
    weights = report.weights
    keys = f"one key for {'all layers' if report.stacked else 'each layer'}"
    rows = {
        "folder": report.folder,
        "format": f"{report.format}, {'one file per rank' if report.one_file_per_rank else keys}",
        "written by": report.writer,
        "iteration": str(report.iteration),
        "weights": f"{counted(weights.num_tensors, 'tensor')}, "
        f"{counted(weights.num_parameters, 'parameter')}, {human_bytes(weights.bytes)}",
        "stored": f"in {counted(weights.num_boxes, 'slice')} of {counted(len(weights.files), 'file')}",
        "read": f"metadata only, in {seconds:.1f} s: no value was looked at (--deep)",
    }
    if report.examined is not None:
        rows["read"] = _read(report.examined)
    columns = [
        Column("stored key", "code"),
        *STORED,
        Column("slices", "count"),
    ]
    sections = [
        *_verdict(report),
        facts("The checkpoint", rows),
        facts(
            "Layout of the run that saved it",
            {name: str(value) for name, value in report.layout.items()},
        ),
        notes(report.notes),
        *_examined(report.examined),
        table(
            f"Stored weights: {counted(len(report.tensors), 'key')}",
            columns,
            (
                [key, list(each.shape), each.dtype, num_bytes(each.dtype, each.shape), each.num_boxes]
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


def _read(examined: Examination) -> str:
    rate = human_bytes(examined.num_bytes_read / max(examined.seconds, 1e-3))
    checked = "CRC-32 of every record checked" if examined.has_checksums else "no checksums were stored"
    return f"{human_bytes(examined.num_bytes_read)} in {examined.seconds:.1f} s, {rate}/s; {checked}"


def _verdict(report: CheckpointReport) -> list[Section]:
    """Of what was looked at; of metadata alone there is none."""
    if report.examined is None:
        return []
    found = counted(len(report.examined.faults), "fault")
    suspicious = sum(bool(tensor.suspicions) for tensor in report.examined.tensors.values())
    told = f"{counted(suspicious, 'tensor')} suspicious" if suspicious else "no tensor is suspicious"
    return [verdict(f"{'every byte is there' if report.ok else found}; {told}", good=report.ok)]


def _examined(examined: Examination | None) -> list[Section]:
    """What can't be read as it was stored, and every tensor with its digest and what is suspicious of it."""
    if examined is None:
        return []
    faults = [
        Column("file", "code", choices=True),
        Column("tensor", "code"),
        Column("kind", choices=True),
        Column("what is wrong"),
    ]
    columns = [
        Column("tensor", "code"),
        Column("shape", "shape", repeats=True),
        Column("dtype", choices=True, repeats=True),
        Column("XXH3-128", "code"),
        Column("suspicious", choices=True, repeats=True),
    ]
    return [
        table(
            "Faults", faults, ([each.file, each.tensor, each.kind, each.message] for each in examined.faults)
        ),
        table(
            f"Tensors: {len(examined.tensors):,}",
            columns,
            (
                [
                    name,
                    list(each.shape),
                    each.dtype,
                    each.digest or "not all is there",
                    ", ".join(each.suspicions),
                ]
                for name, each in examined.tensors.items()
            ),
            note(len(examined.tensors)),
        ),
    ]
