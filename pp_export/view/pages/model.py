"""What plans and exports say alike of the model: its function, its config.json, what was left out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from pp_export.architecture.accounting import TABLE
from pp_export.view.pages.sections import Column, Section, facts, listed, pairs, said, table

if TYPE_CHECKING:
    from pp_export.steps.plan_report import PlanReport
    from pp_export.steps.report import ExportReport


def of_the_model(report: ExportReport | PlanReport) -> list[Section]:
    """Left out, taken from elsewhere, corrected, and what both sides of the export say of the function."""
    return [
        pairs(
            f"Left out of the model: {len(report.dropped):,}",
            ("tensor of the checkpoint", "why"),
            report.dropped,
        ),
        listed(
            f"Taken from the reference: {len(report.taken_from_reference):,}",
            "tensor",
            report.taken_from_reference,
            "The checkpoint has no values for these.",
        ),
        table("config.json", [Column("what", choices=True), Column("text")], _config(report)),
        table(
            f"Settings of the function: {len(report.settings):,}",
            [Column("setting", "code"), Column("value", "code"), Column("held against", choices=True)],
            (
                [
                    name,
                    said(value),
                    "nothing: not known" if name in report.settings_unchecked else "the training args",
                ]
                for name, value in report.settings.items()
            ),
        ),
    ]


def unchecked(report: ExportReport | PlanReport, more: Mapping[str, str] | None = None) -> Section:
    """What nothing could be held against, with `more` that the report alone knows."""
    rows = dict(more or {})
    if report.expected_from == TABLE:
        rows["names and shapes"] = f"held against {TABLE} alone: nothing independent confirms them"
    if report.settings_unchecked:
        rows["settings"] = "the training args don't tell " + ", ".join(report.settings_unchecked)
    if report.args_unknown:
        rows["training args"] = "no table knows " + ", ".join(report.args_unknown)
    return facts("Not checked", rows)


def _config(report: ExportReport | PlanReport) -> Iterator[list[str]]:
    """How config.json differs from the reference's, or where its values come from."""
    for text in report.config_corrections:
        yield ["corrected", text.removeprefix("config.json: ")]
    for text in report.config_additions:
        yield ["added", text.removeprefix("config.json: ")]
    for key, origin in report.config_origins.items():
        yield ["made", f"{key}: {origin}"]
