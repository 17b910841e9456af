"""The tables that people read: medians with their spread, and how near each export comes to the machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.gpu.machine import Machine
from bench.results import Spread

MIN_FRACTION = 0.7
_CAPTION = (
    "Bytes: the export phase, from before the first byte is read until the last is durable. Of the "
    "slowest: its GB/s through the least of pinned copy (live exports), digests by as many threads as "
    "there are ranks, and storage with as many writers. Aim of live exports: at least "
    f"{MIN_FRACTION:.0%}. Whole: seconds of the call (live) or of all processes (offline). Plan and "
    "whole are those of exports that asked transformers for the model's definition, which the later "
    "ones of a live launch knew. Where two ranks share a GPU, NCCL takes them for two hosts and goes "
    "over the loopback interface."
)


def show(console: Console, machine: Machine, runs: Sequence[dict[str, Any]], facts: dict[str, str]) -> None:
    """Print what was measured, and what failed."""
    for name, text in facts.items():
        console.print(f"[bold]{name}[/]  {text}", highlight=False)
    console.print(_machine(machine), _exports(machine, [run for run in runs if "failed" not in run]))
    for run in (run for run in runs if "failed" in run):
        what = " ".join(str(run[name]) for name in ("kind", "ranks", "target", "asked") if name in run)
        console.print(f"[red]failed[/] {what}: {run['failed']}", highlight=False)


def bound(machine: Machine, run: dict[str, Any]) -> tuple[str, float]:
    """What no run of this kind can be faster than: its name, and bytes per second."""
    bounds = {
        "digests": machine.digests[run["ranks"]].median,
        "storage": machine.storage[run["target"]][run["ranks"]].median,
    }
    if run["kind"] == "live" and machine.pinned_copy is not None:
        bounds["copy"] = machine.pinned_copy.median
    return min(bounds.items(), key=lambda pair: pair[1])


def _machine(machine: Machine) -> Table:
    table = Table("GB/s", "threads", "median (least - most)", title="The machine", title_justify="left")
    if machine.pinned_copy is not None:
        table.add_row("GPU to pinned memory", "1", _rate(machine.pinned_copy))
    table.add_row("SHA-256", "1", _rate(machine.sha256))
    for count, spread in machine.digests.items():
        table.add_row("SHA-256 and XXH3, as an export takes both", str(count), _rate(spread))
    for name, by_count in machine.storage.items():
        for count, spread in by_count.items():
            table.add_row(f"written to {name}, durable", str(count), _rate(spread))
    return table


def _exports(machine: Machine, runs: Sequence[dict[str, Any]]) -> Table:
    table = Table(title="Exports: median, with least and most", title_justify="left")
    table.caption, table.caption_justify = _CAPTION, "left"
    left = ("export", "to", "over", "slowest")
    for heading in ("export", "ranks", "to", "over", "runs", "bytes s", "GB/s", "of the slowest", "slowest"):
        table.add_column(heading, justify="left" if heading in left else "right")
    for heading in ("met", "plan s", "index s", "publish s", "whole s"):
        table.add_column(heading, justify="right")
    keys = ("kind", "ranks", "target", "asked", "backend")
    for key in dict.fromkeys(tuple(run[name] for name in keys) for run in runs):
        of_row = [run for run in runs if tuple(run[name] for name in keys) == key]
        kind, ranks, target, asked, used = key
        name, limit = bound(machine, of_row[0])
        asking = [run for run in of_row if run["definition_asked"]] or of_row
        rates = [run["bytes"] / run["seconds"]["export"] for run in of_row]
        fraction = Spread.of([rate / limit for rate in rates])
        is_met = (
            "" if kind != "live" else "[green]yes[/]" if fraction.median >= MIN_FRACTION else "[red]no[/]"
        )
        table.add_row(
            *(kind, str(ranks), target),
            f"{used or 'nothing sent'}"
            + (f" ({asked} asked for)" if used and asked not in (used, "auto") else ""),
            str(len(of_row)),
            _seconds(of_row, "export", "{:.2f}"),
            _rate(Spread.of(rates)),
            _cell(fraction, "{:.0%}"),
            f"{name}, {limit / 1e9:.2f}",
            is_met,
            _seconds(asking, "plan"),
            _seconds(of_row, "index"),
            _seconds(of_row, "publish"),
            _cell(Spread.of([run["wall_seconds"] for run in asking]), "{:.1f}"),
        )
    return table


def _seconds(runs: Sequence[dict[str, Any]], phase: str, form: str = "{:.1f}") -> str:
    return _cell(Spread.of([run["seconds"][phase] for run in runs]), form)


def _rate(spread: Spread) -> str:
    return _cell(Spread(*(value / 1e9 for value in (spread.median, spread.least, spread.most))), "{:.2f}")


def _cell(spread: Spread, form: str) -> str:
    middle, least, most = (form.format(value) for value in (spread.median, spread.least, spread.most))
    return middle if middle == least == most else f"{middle} ({least} - {most})"
