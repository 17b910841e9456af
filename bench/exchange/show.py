"""The table that people read: medians with their spread, ratios formed within each repetition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.exchange.rank import BARE, EXPORT
from bench.results import Spread

MIN_RATIO = 0.8
_CAPTION = (
    "Wire GB/s: bytes that went between processes, all links together, over the seconds from the "
    "first rank's beginning to the last rank's end. Aim: the median ratio is at least "
    f"{MIN_RATIO:.0%}. The export's seconds hold making the connection too. CPU: that of all ranks, "
    "the export's through the bare way's; it tells more where others use the machine."
)


def show(console: Console, runs: Sequence[dict[str, Any]], facts: dict[str, str]) -> None:
    """Print the machine and a row for each launch and number of leaders."""
    for name, text in facts.items():
        console.print(f"[bold]{name}[/]  {text}", highlight=False)
    table = Table(title="Exchange over Gloo: median, with least and most", title_justify="left")
    table.caption, table.caption_justify = _CAPTION, "left"
    for heading in (
        "ranks",
        "",
        "GB sent",
        "rounds",
        "bare GB/s",
        "export GB/s",
        "export / bare",
        "met",
        "CPU",
    ):
        table.add_column(heading, justify="left" if heading == "" else "right")
    counted = [run for run in runs if run["repetition"] > 0]
    for size, leaders in dict.fromkeys((run["ranks"], run["leaders"]) for run in counted):
        of_row = [run for run in counted if (run["ranks"], run["leaders"]) == (size, leaders)]
        ratio = _quotients(of_row, "seconds", over=BARE)
        row = (
            *(str(size), leaders, f"{of_row[0]['wire_bytes'] / 1e9:.2f}", str(of_row[0]["rounds"])),
            *(_cell(_rates(of_row, way), "{:.2f}") for way in (BARE, EXPORT)),
            _cell(ratio, "{:.0%}"),
            "[green]yes[/]" if ratio.median >= MIN_RATIO else "[red]no[/]",
            _cell(_quotients(of_row, "cpu_seconds", over=EXPORT), "{:.2f}x"),
        )
        table.add_row(*row)
    console.print(table)


def _rates(runs: Sequence[dict[str, Any]], way: str) -> Spread:
    return Spread.of([run["wire_bytes"] / run["seconds"] / 1e9 for run in runs if run["way"] == way])


def _quotients(runs: Sequence[dict[str, Any]], figure: str, *, over: str) -> Spread:
    """A figure of the way `over` through that of the other way, repetition by repetition."""
    by_repetition: dict[int, dict[str, float]] = {}
    for run in runs:
        by_repetition.setdefault(run["repetition"], {})[run["way"]] = run[figure]
    under = EXPORT if over == BARE else BARE
    return Spread.of([each[over] / each[under] for each in by_repetition.values()])


def _cell(spread: Spread, form: str) -> str:
    middle, least, most = (form.format(value) for value in (spread.median, spread.least, spread.most))
    return f"{middle} ({least} - {most})"
