"""What the runs say: medians with their spread, ratios within each round, and whether the aims hold."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.measure import Run

MAX_PHASE_RATIO, MIN_SPEEDUP, MAX_ANONYMOUS_BYTES = 1.3, 2.0, 2 * 10**9

Value = Callable[[Run], float | None]


@dataclass(frozen=True)
class Spread:
    """A median, and the least and the most."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Ratio:
    """One quotient of two figures, formed in each round, so that a slow minute of the machine hits both."""

    name: str
    spread: Spread


@dataclass(frozen=True)
class Aim:
    """Something this project promised itself, and what was measured."""

    text: str
    measured: str
    is_met: bool


class Results:
    """The counted runs of all variants."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.by_variant: dict[str, list[Run]] = {}
        for run in runs:
            self.by_variant.setdefault(run.variant, []).append(run)

    def spread(self, variant: str, value: Value) -> Spread | None:
        """The spread of a figure over the runs that have it."""
        values = [found for run in self.by_variant.get(variant, []) if (found := value(run)) is not None]
        return Spread.of(values) if values else None

    def ratio(self, over: str, under: str, name: str, over_value: Value, under_value: Value) -> Ratio | None:
        """`over_value` of one variant over `under_value` of another, round by round."""
        unders = {run.round: under_value(run) for run in self.by_variant.get(under, [])}
        quotients = [
            value / divisor
            for run in self.by_variant.get(over, [])
            if (value := over_value(run)) is not None and (divisor := unders.get(run.round))
        ]
        return Ratio(name, Spread.of(quotients)) if quotients else None

    def ratios(self) -> list[Ratio]:
        """Whole processes against the naive converter, export phases against copies.

        CPU seconds are compared too: they tell more than the clock where others use the machine.
        """
        exports = [variant for variant in self.by_variant if variant.startswith("export-")]
        found = [self.ratio("naive", each, f"naive / {each}, whole process", wall, wall) for each in exports]
        found += [self.ratio("naive", each, f"naive / {each}, CPU seconds", cpu, cpu) for each in exports]
        for copy in ("cp", "cp-sync"):
            found += [
                self.ratio(each, copy, f"export phase of {each} / {copy}", export_phase, wall)
                for each in exports
            ]
        return [ratio for ratio in found if ratio is not None]

    def aims(self) -> list[Aim]:
        """The aims that the measured variants can speak of."""
        aims: list[Aim] = []
        speedup = self.ratio("naive", "export-1", "", wall, wall)
        if speedup is not None:
            text = f"1 rank, verified, with start-up: at least {MIN_SPEEDUP:g} times as fast as naive"
            aims.append(_aim(text, speedup.spread, lambda at: at >= MIN_SPEEDUP, "{:.2f}"))
        for variant in ("export-1", "export-2"):
            phase = self.ratio(variant, "cp", "", export_phase, wall)
            if phase is not None:
                text = f"export phase of {variant}: within {MAX_PHASE_RATIO:g} times of cp -r"
                aims.append(_aim(text, phase.spread, lambda at: at <= MAX_PHASE_RATIO, "{:.2f}"))
        sampled = self.spread("export-1", lambda run: run.peak_anonymous_bytes / 1e6)
        if sampled is not None:
            text = "1 rank: peak anonymous memory of all its processes below 2,000 MB"
            aims.append(_aim(text, sampled, lambda at: at * 1e6 < MAX_ANONYMOUS_BYTES, "{:,.0f} MB"))
        for variant in ("export-1", "export-2"):
            above = self.spread(variant, above_plan)
            if above is not None:
                text = f"{variant}: no rank above its planned peak (shards in flight, buckets, 300 MiB)"
                aims.append(_aim(text, above, lambda at: at <= 0, "{:+,.0f} MB"))
        return aims


def wall(run: Run) -> float | None:
    """Seconds of the whole process."""
    return run.wall_seconds


def cpu(run: Run) -> float | None:
    """CPU seconds of all processes."""
    return run.cpu_seconds


def export_phase(run: Run) -> float | None:
    """Seconds from the first byte read to the last byte on disk, SHA-256 included; pp_export's own figure."""
    return run.phases.get("export")


def above_plan(run: Run) -> float | None:
    """MB by which the rank that is nearest to its planned peak is above it; pp_export's own figures."""
    peaks, planned = run.report.get("peak_anonymous_bytes"), run.report.get("planned_peak_bytes")
    return max(peak - plan for peak, plan in zip(peaks, planned)) / 1e6 if peaks and planned else None


def _aim(text: str, spread: Spread, is_met: Callable[[float], bool], form: str) -> Aim:
    middle, least, most = (form.format(value) for value in (spread.median, spread.least, spread.most))
    return Aim(text, f"{middle} ({least} to {most})", is_met(spread.median))
