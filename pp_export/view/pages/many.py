"""The page of many exports: what became of each iteration."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from pp_export.view.pages.document import page
from pp_export.view.pages.sections import Column, facts, table, verdict

if TYPE_CHECKING:
    from pp_export.steps.many_report import ManyReport, Outcome


def many_page(report: ManyReport) -> bytes:
    """The iterations in their order; those that failed with what and where."""
    counts = Counter(each.status for each in report.in_order)
    said = ", ".join(f"{count} {status}" for status, count in counts.items()) or "nothing was there to export"
    columns = [
        Column("iteration", "count"),
        Column("outcome", choices=True),
        Column("bytes", "bytes"),
        Column("seconds", "seconds"),
        Column("output", "code"),
        Column("notes"),
    ]
    ended = {"stopped": "by a signal"} if report.stopped else {}
    if report.error is not None:
        ended["error"] = str(report.error)
    sections = [
        verdict(said, good=report.ok),
        facts("How it ended", ended),
        table(
            f"Iterations: {len(report.in_order):,}",
            columns,
            ([e.iteration, e.status, e.total_size, e.seconds, e.output, _notes(e)] for e in report.in_order),
        ),
    ]
    return page("Exports of iterations", sections)


def _notes(outcome: Outcome) -> str:
    return "; ".join(outcome.notes) if outcome.error is None else str(outcome.error)
