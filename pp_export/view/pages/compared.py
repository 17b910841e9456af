"""The page of a comparison: where in the model two sides differ, and by how much."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pp_export.core.words import counted
from pp_export.view.pages.document import page
from pp_export.view.pages.sections import Column, Section, facts, lines, listed, notes, said, table, verdict
from pp_export.view.text import human_bytes

if TYPE_CHECKING:
    from pp_export.verification.diff import Difference

_ERRORS = [Column("absolute", "number"), Column("relative", "number"), Column("ULP", "number")]


def difference_page(result: Difference, seconds: float) -> bytes:
    """Everything in which two sides differ, found in so many `seconds`."""
    unread = f", {result.num_equal_by_digest:,} by the digests that both record, unread"
    tolerance = result.tolerance
    rate = human_bytes(result.num_bytes_read / max(seconds, 1e-3))
    rows = {
        "A": result.a,
        "B": result.b,
        "equal": counted(result.num_equal, "tensor") + unread * bool(result.num_equal_by_digest),
        "different": _different(result),
        "tolerance": "none: bits are compared"
        if tolerance.is_exact
        else f"absolute {tolerance.absolute:g}, relative {tolerance.relative:g}, {tolerance.ulps:g} ULP",
        "read": f"{human_bytes(result.num_bytes_read)} of both sides in {seconds:.1f} s, {rate}/s",
    }
    if result.planned_bytes is not None:
        rows["memory"] = f"{human_bytes(result.planned_bytes)} planned"
    sections = [
        verdict(
            "identical" if result.identical else "within the tolerance" if result.ok else "different",
            good=result.ok,
        ),
        facts("The comparison", rows),
        notes(result.notes),
        _plot(result),
        table(
            f"Settings of the function that differ: {len(result.config):,}",
            [Column("setting", "code"), Column("A", "code"), Column("B", "code")],
            ([each.setting, said(each.a), said(each.b)] for each in result.config),
        ),
        listed(f"Only in A: {counted(len(result.only_in_a), 'tensor')}", "tensor", result.only_in_a),
        listed(f"Only in B: {counted(len(result.only_in_b), 'tensor')}", "tensor", result.only_in_b),
        table(
            f"Of other shape or dtype: {counted(len(result.other_spec), 'tensor')}",
            [Column("tensor", "code"), Column("A", "code"), Column("B", "code")],
            ([each.name, each.a, each.b] for each in result.other_spec),
            "Their values were not compared.",
        ),
        _values(result),
        _layers(result),
    ]
    return page(f"{Path(result.a).name} and {Path(result.b).name} compared", sections)


def _different(result: Difference) -> str:
    counts = {
        "in values": len(result.other_values),
        "in shape or dtype": len(result.other_spec),
        "only in A": len(result.only_in_a),
        "only in B": len(result.only_in_b),
    }
    found = [f"{counted(count, 'tensor')} {where}" for where, count in counts.items() if count]
    if result.config:
        found.append(f"{counted(len(result.config), 'setting')} of the function")
    return ", ".join(found) or "nothing"


def _plot(result: Difference) -> Section:
    """The largest errors over the layers."""
    if not any(each.num_different for each in result.by_layer):
        return {}
    series: dict[str, list[tuple[int, float]]] = {}
    for each in result.by_layer:
        if each.layer is not None:
            series.setdefault(each.kind, []).append((each.layer, each.max_rel_error))
    note = "The largest relative error of any tensor of a kind, layer by layer."
    return lines("Errors over the layers", series, "layer", "equal", note)


def _layers(result: Difference) -> Section:
    """The same as a table, with what lies in no layer."""
    columns = [
        Column("kind", choices=True),
        Column("layer", "count"),
        Column("tensors", "count"),
        Column("differ", "count"),
        *_ERRORS,
    ]
    rows = [
        [
            each.kind,
            each.layer,
            each.num_tensors,
            each.num_different,
            each.max_abs_error,
            each.max_rel_error,
            each.max_ulp_error,
        ]
        for each in result.by_layer
    ]
    note = "Those without a layer lie in none, as embeddings do."
    return table("Errors by layer", columns, rows if result.other_values else [], note)


def _values(result: Difference) -> Section:
    """Each tensor whose values differ, the largest errors first."""
    columns = [
        Column("tensor", "code"),
        Column("differ", "count"),
        Column("of", "count"),
        Column("outside", "count"),
        Column("not finite", "count"),
        *_ERRORS,
    ]
    ordered = sorted(result.other_values, key=lambda value: (-value.num_outside, -value.max_rel_error))
    rows = (
        [
            each.name,
            each.num_different,
            each.num_elements,
            each.num_outside,
            each.num_not_finite,
            each.max_abs_error,
            each.max_rel_error,
            each.max_ulp_error,
        ]
        for each in ordered
    )
    title = f"Of other values: {counted(len(ordered), 'tensor')}"
    return table(
        title,
        columns,
        rows,
        "How many values differ, how many by more than the tolerance, and by how much at most.",
    )
