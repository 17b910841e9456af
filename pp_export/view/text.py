"""How sizes are said, and what text is shown with.

rich is imported when it is needed: what prints JSON, or nothing yet, doesn't wait for it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from pp_export.steps.prediction_report import PredictionReport
    from pp_export.verification.comparison import LogitComparison

_WIDTH_OF_FILES = 200


def human_bytes(count: float) -> str:
    """`3.55 GB`."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def console() -> Console:
    """stdout, for text that is shown as it is: names may look like markup. What is no terminal is wide, so
    that names stay whole for whoever searches in it.
    """
    from rich.console import Console

    width = None if sys.stdout.isatty() else _WIDTH_OF_FILES
    return Console(width=width, markup=False, emoji=False, highlight=False)


def prepare() -> None:
    """Import what tables are shown with, ahead of the moment in which somebody waits for one."""
    from rich import console, table  # noqa: F401


def empty_table(**settings: Any) -> Table:
    """An empty table."""
    from rich.table import Table

    return Table(**settings)


def table_of_facts(title: str, facts: Mapping[str, str]) -> Table:
    """A row for each fact, by name; what is too long for a line is folded, never cut."""
    table = empty_table(title=title, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in facts.items():
        table.add_row(name, text)
    return table


def machine_facts(found: PredictionReport) -> dict[str, str]:
    """What a prediction was made for, and what comes of it, by name."""
    bounds = sorted(found.bounds.items(), key=lambda pair: -pair[1])
    nodes = f"{found.nodes:,} node{'s' * (found.nodes > 1)} with {found.cores} cores"
    storage = f"storage {found.read_gbps:g} GB/s read, {found.write_gbps:g} written, in all"
    return {
        "machine": f"{nodes}; {storage}; network {found.network_gbps:g} GB/s for each node",
        "phases": ", ".join(f"{name} {seconds:.2f} s" for name, seconds in found.phases.items()),
        "at least": ", ".join(f"{name} {seconds:.2f} s" for name, seconds in bounds),
        "costs": ", ".join(f"{name} {cost:g}" for name, cost in found.costs.items()) + " (CPU s/GB, or s)",
    }


def logit_facts(result: LogitComparison) -> dict[str, str]:
    """How far a folder's logits are from the recorded ones, by name."""
    worst, share = result.worst, f"{result.required_share:.0%}"
    what = f"{result.batch} x {result.sequence} positions, {result.num_columns:,} logits each"
    padding = f"; {result.num_padding_columns:,} padding columns left out" * bool(result.num_padding_columns)
    return {
        "recording": f"{result.recording}: {what}{padding}",
        "precision": f"{result.precision} (recorded as {result.recorded_dtype})",
        "run": "transformers, CPU, float32" + ", weights partly on disk" * result.partly_on_disk,
        "difference": f"{result.difference:.2g} standard deviations of the logits or less at {share} of the"
        f" positions (tolerance {result.tolerance:g}), {result.max_difference:.2g} at the worst",
        "within tolerance": f"{result.share_within:.1%} of the positions ({share} needed)",
        "absolute": f"{result.mean_abs_difference:.2g} on average, {result.max_abs_difference:.2g} at most",
        "KL divergence": f"{result.mean_kl_divergence:.2g} on average,"
        f" {result.max_kl_divergence:.2g} at most",
        "top token": f"the same at {result.top_token_agreement:.1%} of the positions",
        "worst logit": f"batch {worst.batch}, position {worst.position}, token {worst.token}:"
        f" {worst.recorded:.6g} recorded, {worst.exported:.6g} exported",
    }
