"""The tables that people read."""

from __future__ import annotations

import os
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from bench.results import Results, Spread, Value
from bench.variants import Variant

PHASES = ("plan", "export", "index", "publish")
_CAPTION = (
    "Disk busy: for how much of the time the disk had something to do, as the kernel counts it. "
    "Others' cores: how many cores all else kept busy during the run; above a few tenths the machine was "
    "not alone. Peaks are of all processes of a run together. Anonymous (RssAnon and RssShmem) is sampled "
    "and can miss what is short; resident is the sum of the kernel's own peaks (VmHWM), libraries included."
)


def show(console: Console, results: Results, variants: Sequence[Variant], facts: dict[str, str]) -> None:
    """Print everything: the machine, each variant, the ratios, the aims."""
    for name, text in facts.items():
        console.print(f"[bold]{name}[/]  {text}", highlight=False)
    measured = [variant for variant in variants if variant.name in results.by_variant]
    console.print(_runs(results, measured), _phases(results, measured), _ratios(results), _aims(results))


def _runs(results: Results, variants: Sequence[Variant]) -> Table:
    table = _table("Median, with least and most", "variant")
    table.caption, table.caption_justify = _CAPTION, "left"
    for heading in (
        *("name", "seconds", "CPU seconds", "cores busy", "disk busy"),
        *("others' cores", "anonymous MB", "resident MB"),
    ):
        table.add_column(heading, justify="left" if heading == "name" else "right")
    figures: tuple[Value, ...] = (
        lambda run: run.wall_seconds,
        lambda run: run.cpu_seconds,
        lambda run: 100 * run.cpu_seconds / run.wall_seconds / (os.cpu_count() or 1),
        lambda run: 100 * run.disk_busy if run.disk_busy is not None else None,
        lambda run: run.other_cores,
        lambda run: run.peak_anonymous_bytes / 1e6,
        lambda run: run.peak_resident_bytes / 1e6,
    )
    forms = ("{:.2f}", "{:.2f}", "{:.0f}%", "{:.0f}%", "{:.1f}", "{:,.0f}", "{:,.0f}")
    for variant in variants:
        cells = [_cell(results.spread(variant.name, value), form) for value, form in zip(figures, forms)]
        table.add_row(variant.text, variant.name, *cells)
    return table


def _phases(results: Results, variants: Sequence[Variant]) -> Table:
    table = _table(
        "Seconds of each phase, as pp_export reports them; the rest is start-up and end", "variant"
    )
    for phase in (*PHASES, "rest"):
        table.add_column(phase, justify="right")
    for variant in variants:
        if variant.report is None:
            continue
        values: list[Value] = [lambda run, phase=phase: run.phases.get(phase) for phase in PHASES]  # type: ignore[misc]
        values.append(lambda run: run.wall_seconds - sum(run.phases.values()))
        table.add_row(variant.name, *[_cell(results.spread(variant.name, each), "{:.2f}") for each in values])
    return table


def _ratios(results: Results) -> Table:
    table = _table("Ratios", "formed within each round")
    table.add_column("median (least - most)", justify="right")
    for ratio in results.ratios():
        table.add_row(ratio.name, _cell(ratio.spread, "{:.2f}"))
    return table


def _aims(results: Results) -> Table:
    table = _table("Aims", "aim", "measured", "met")
    for aim in results.aims():
        table.add_row(aim.text, aim.measured, "[green]yes[/]" if aim.is_met else "[red]no[/]")
    return table


def _table(title: str, *headings: str) -> Table:
    return Table(*headings, title=title, title_justify="left")


def _cell(spread: Spread | None, form: str) -> str:
    if spread is None:
        return "-"
    middle, least, most = (form.format(value) for value in (spread.median, spread.least, spread.most))
    return f"{middle} ({least} - {most})"
