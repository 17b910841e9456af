"""What the runs say: medians with their spread, ratios within each round, and whether the aims hold."""

from __future__ import annotations

import operator
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from bench.measure import Run
from bench.variants import COPY

MIN_SPEEDUPS = {"export-1": 3.0, "export-2": 2.0}
MAX_PHASE_RATIO, MAX_WHOLE_RATIO, MAX_ANONYMOUS_BYTES = 1.3, 1.25, 2 * 10**9
CPU_SECONDS_PER_GB = 0.9
"""Of read with CRC, SHA-256, XXH3, write and re-read: what a verified export costs any program."""
STARTS = {"export-1": None, "export-2": "floor-2"}
"""The variant that does nothing but start, as each export must; one process alone needs nothing of it."""

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
        """Whole processes against the naive converter, and each export against its floors.

        CPU seconds are compared too: they tell more than the clock where others use the machine.
        """
        exports = [variant for variant in self.by_variant if variant.startswith("export-")]
        found = [self.ratio("naive", each, f"naive / {each}, whole process", wall, wall) for each in exports]
        found += [self.ratio("naive", each, f"naive / {each}, CPU seconds", cpu, cpu) for each in exports]
        found += [self.ratio("naive-sync", each, f"naive-sync / {each}", wall, wall) for each in exports]
        found += [
            self.ratio(each, "cp-sync", f"byte phase of {each} / cp-sync", byte_phase, wall)
            for each in exports
        ]
        for each in STARTS:
            found += [
                self.against_floor(each, f"byte phase of {each} / its floor", byte_phase),
                self.against_floor(each, f"{each}, whole process / its floor", wall, with_start=True),
            ]
        return [ratio for ratio in found if ratio is not None]

    def against_floor(
        self, variant: str, name: str, value: Value, *, with_start: bool = False
    ) -> Ratio | None:
        """`value` of a variant over its floor in each round: the larger of copying and re-reading the bytes,
        and of what they cost the cores; and before it the start, if asked for.
        """
        copies = {run.round: run.wall_seconds for run in self.by_variant.get(COPY, [])}
        starts = {run.round: run.wall_seconds for run in self.by_variant.get(STARTS[variant] or "", [])}
        quotients = []
        for run in self.by_variant.get(variant, []):
            copy, start = copies.get(run.round), starts.get(run.round, 0.0) if with_start else 0.0
            if copy is not None and (seconds := value(run)) is not None:
                gigabytes = run.report["total_size"] / 1e9
                cores = CPU_SECONDS_PER_GB * gigabytes / (os.cpu_count() or 1)
                quotients.append(seconds / (start + max(copy, cores)))
        return Ratio(name, Spread.of(quotients)) if quotients else None

    def aims(self) -> list[Aim]:
        """The aims that the measured variants can speak of."""
        aims: list[Aim] = []
        for variant, least in MIN_SPEEDUPS.items():
            speedup = self.ratio("naive", variant, "", wall, wall)
            if speedup is not None:
                text = f"{variant}, whole process: at least {least:g} times as fast as naive"
                is_met = partial(operator.le, least)
                aims.append(_aim(text, speedup.spread, is_met, "{:.2f}"))
        for variant in STARTS:
            phase = self.against_floor(variant, "", byte_phase)
            if phase is not None:
                text = f"byte phase of {variant}: within {MAX_PHASE_RATIO:g} times of its floor"
                aims.append(_aim(text, phase.spread, lambda at: at <= MAX_PHASE_RATIO, "{:.2f}"))
            whole = self.against_floor(variant, "", wall, with_start=True)
            if whole is not None:
                text = f"{variant}, whole process: within {MAX_WHOLE_RATIO:g} times of its floor"
                aims.append(_aim(text, whole.spread, lambda at: at <= MAX_WHOLE_RATIO, "{:.2f}"))
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


def byte_phase(run: Run) -> float | None:
    """Seconds from the first byte read to the last one verified, or on disk; pp_export's own figures."""
    return run.phases["export"] + run.phases["index"] if run.phases else None


def above_plan(run: Run) -> float | None:
    """MB by which the rank that is nearest to its planned peak is above it; pp_export's own figures."""
    peaks, planned = run.report.get("peak_anonymous_bytes"), run.report.get("planned_peak_bytes")
    return max(peak - plan for peak, plan in zip(peaks, planned)) / 1e6 if peaks and planned else None


def _aim(text: str, spread: Spread, is_met: Callable[[float], bool], form: str) -> Aim:
    middle, least, most = (form.format(value) for value in (spread.median, spread.least, spread.most))
    return Aim(text, f"{middle} ({least} to {most})", is_met(spread.median))
