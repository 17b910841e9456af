"""The page of an export, or a consolidation: what it took, what it made, and what it could not prove."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pp_export.core.words import counted
from pp_export.view.pages import model, ranks
from pp_export.view.pages.document import page
from pp_export.view.pages.sections import Column, Section, bars, facts, notes, pairs, table, verdict
from pp_export.view.pages.tensors import of_shards
from pp_export.view.text import human_bytes

if TYPE_CHECKING:
    from pp_export.shards.manifests import ShardManifest
    from pp_export.steps.report import ExportReport


def export_page(report: ExportReport, shards: Sequence[ShardManifest] = ()) -> bytes:
    """What an export did; `shards` are those of its folder's manifest."""
    memory = {"measured": report.peak_anonymous_bytes, "planned": report.planned_peak_bytes}
    num_ranks = len(report.peak_anonymous_bytes)
    sections = [
        _outcome(report),
        facts("The export", _facts(report)),
        notes(report.notes),
        model.unchecked(report, _unchecked(report)),
        *ranks.timeline("Measured timeline", report.timeline),
        bars("Peak of anonymous memory of each rank", memory, "bytes", "What was measured, beside the plan."),
        bars("Bytes of each rank", ranks.bytes_of_ranks(report.links, report.timeline, num_ranks), "bytes"),
        ranks.links(report.links),
        *model.of_the_model(report),
        *_values(report),
        *of_shards(shards),
        pairs("Options", ("option", "value"), {k: v for k, v in report.options.items() if v is not None}),
        pairs("Versions", ("of", "version"), report.versions),
    ]
    return page(f"Export {Path(report.output).name}", sections)


def _outcome(report: ExportReport) -> Section:
    size = f"{counted(report.num_files, 'file')}, {human_bytes(report.total_size)}"
    proved = "every byte re-read" if report.verified else "NOT verified"
    return verdict(f"published: {size}, {proved}", good=report.verified)


def _facts(report: ExportReport) -> dict[str, str]:
    seconds = sum(report.seconds.values())
    export_seconds = max(report.seconds.get("export", 0.0), 1e-3)
    rate = human_bytes((report.total_size - report.kept_bytes) / export_seconds)
    where = (
        report.checkpoint
        if report.iteration is None
        else f"{report.checkpoint}, iteration {report.iteration}"
    )
    rows = {
        "output": report.output,
        "checkpoint": f"{where} ({report.format})",
        "model": f"{report.architecture}, {counted(report.total_parameters, 'parameter')}, {report.dtype}",
        "files": f"{report.num_files:,}, {counted(report.num_tensors, 'tensor')},"
        f" {human_bytes(report.total_size)}",
        "seconds": f"{seconds:.1f}: " + ", ".join(f"{k} {v:.2f}" for k, v in report.seconds.items()),
        "rate": f"{rate}/s while it exported",
        "ranks": f"{sum(report.stages):,} in {counted(len(report.stages), 'stage')}",
        "wire": f"{report.backend or 'nothing was sent'}: {report.backend_reason}",
        "verified": "every byte was re-read" if report.verified else "NOT verified",
        "accounted": f"every tensor once, against {report.expected_from}",
        "copied": ", ".join(report.assets_copied) or "no other file",
        "plan": report.plan_fingerprint,
    }
    if report.assets_left:
        rows["left in the reference"] = ", ".join(report.assets_left)
    if report.kept_bytes:
        rows["kept of an earlier run"] = human_bytes(report.kept_bytes)
    return rows


def _unchecked(report: ExportReport) -> dict[str, str]:
    """What of it wasn't checked, by name."""
    rows = {}
    if not report.verified:
        rows["the folder"] = "nothing was re-read from the disk (--no-verify)"
    if report.source_checked is False:
        rows["the source"] = "its bytes were held against no checksums"
    return rows


def _values(report: ExportReport) -> list[Section]:
    """What is known of the values of some tensors."""
    error = [Column("tensor", "code"), Column("absolute", "number"), Column("relative", "number")]
    return [
        table(
            f"NaN or infinity: {counted(len(report.not_finite), 'tensor')}",
            [Column("tensor", "code"), Column("values", "count")],
            report.not_finite.items(),
        ),
        pairs(
            f"Of another dtype than {report.dtype}: {len(report.other_dtypes):,}",
            ("tensor", "dtype"),
            report.other_dtypes,
        ),
        table(
            f"Quantized: {len(report.quantized):,}",
            error,
            ([name, each["absolute"], each["relative"]] for name, each in report.quantized.items()),
            "The largest error of each tensor; relative to the largest value under the same scale.",
        ),
        pairs(f"Not quantized: {len(report.not_quantized):,}", ("tensor", "why"), report.not_quantized),
    ]
