"""A plan in a few numbers: how evenly the work lies on the ranks, and which of them can't help."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import median_low
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pp_export.planning.export_plan import ExportPlan

_MAX_NAMED = 6


@dataclass(frozen=True)
class Load:
    """Bytes that one rank has of something: the most of all ranks, and the median of those that take part;
    and ranks that have as much.
    """

    most: int
    most_rank: int
    median: int
    median_rank: int


@dataclass(frozen=True, kw_only=True)
class PlanSummary:
    """How evenly the work lies. `idle_ranks` neither read nor lead; `num_busy_ranks` are all others, and so
    the largest number of ranks near the world's size that all help. `total_sent_bytes` go from rank to rank.
    """

    num_leaders: int
    num_busy_ranks: int
    idle_ranks: tuple[int, ...]
    total_sent_bytes: int
    read_bytes: Load
    sent_bytes: Load
    written_bytes: Load
    peak_bytes: Load


def summarize(plan: ExportPlan) -> PlanSummary:
    """The summary of a plan; pure."""
    busy = [part for part in plan.parts if not part.is_idle]

    def load(name: str) -> Load:
        found = [getattr(part, name) for part in busy]
        most, median = max(found), median_low(found)
        return Load(most, busy[found.index(most)].rank, median, busy[found.index(median)].rank)

    return PlanSummary(
        num_leaders=_num_leaders(plan),
        num_busy_ranks=len(busy),
        idle_ranks=plan.idle_ranks,
        total_sent_bytes=sum(plan.links.values()),
        read_bytes=load("read_bytes"),
        sent_bytes=load("sent_bytes"),
        written_bytes=load("written_bytes"),
        peak_bytes=load("peak_bytes"),
    )


def notes_on(plan: ExportPlan, *, is_live: bool) -> tuple[str, ...]:
    """A sentence for the user where some ranks have nothing to read or write. How many ranks a training job
    has (`is_live`) is not for an export to say.
    """
    idle = plan.idle_ranks
    if not idle:
        return ()
    num_verifying = len({*plan.verifiers()} & {*idle})
    advice = "" if is_live else f" {plan.world_size - len(idle)} ranks are enough, or"
    return (
        f"{len(idle)} of {plan.world_size} ranks have nothing to read or write ({named(idle)}):"
        f" there are {len(plan.files)} files{_in_ranges(plan)}, led by {_num_leaders(plan)} ranks."
        f" {num_verifying} of them re-read files if the export is verified.{advice}"
        f" {'a' if advice else 'A'} smaller max_shard_size makes more files.",
    )


def _num_leaders(plan: ExportPlan) -> int:
    return len({shard.leader for shard in plan.shards})


def _in_ranges(plan: ExportPlan) -> str:
    return f" in {len(plan.shards)} ranges" if len(plan.shards) > len(plan.files) else ""


def named(ranks: Sequence[int]) -> str:
    """Ranks in order as text: `0, 3-5`."""
    runs = [[rank for _, rank in run] for _, run in groupby(enumerate(ranks), lambda pair: pair[1] - pair[0])]
    texts = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    return ", ".join(texts[:_MAX_NAMED]) + ", ..." * (len(texts) > _MAX_NAMED)
