"""One rank of the benchmark: torchrun --nproc-per-node N -m bench.exchange.rank FILE REPETITIONS LAYERS

A repetition runs both ways for every number of leaders; the ways take turns in coming first. Repetition 0
warms up. Rank 0 writes what was measured to FILE.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from bench.exchange.bare import BareExchange, BareRound
from pp_export.architecture import table_files
from pp_export.architecture.accounting import Expected, account
from pp_export.core.tensors import Slice
from pp_export.distributed import process_groups
from pp_export.distributed.backends import GLOO, Backend
from pp_export.distributed.world import World
from pp_export.planning.export_plan import ExportPlan
from pp_export.planning.planner import make_plan
from pp_export.planning.rank_grid import RankGrid
from pp_export.steps.exchange import GatheredRound
from pp_export.steps.transfer import Transfer
from pp_export.steps.workers import Progress
from tests.fixtures.catalogs import ToyDecoder

BARE, EXPORT = "bare", "export"
LEADERS = {"every rank leads": None, "one rank leads": 1}
_PAGE = 4096


class Source:
    """A reader that costs nearly nothing: it leaves the memory that it is to fill as it is, but for a byte of
    every page, as untouched pages would all be the kernel's one page of zeros.
    """

    allows_threads = True

    def read(self, slice_: Slice, *into: memoryview) -> None:
        for piece in into:
            torch.frombuffer(piece, dtype=torch.uint8)[::_PAGE] = 1

    def settle(self) -> None:
        """Everything is there at once."""

    def on_device(self, slice_: Slice) -> None:
        """Nothing lies on a GPU."""

    def finish(self) -> None:
        """There is nothing to check."""

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *exception: object) -> None:
        """There is nothing to close."""


def plan_of(num_layers: int, size: int, leaders: int | None) -> ExportPlan:
    """The planner's own plan for a model in Qwen2-1.5B's shape, stored by `size` tensor parallel ranks, read
    by as many. It has fewer layers and a smaller vocabulary.
    """
    toy = ToyDecoder(num_layers, 1536, 12, 4, 128, ffn=8960, vocab=32_000, padded_vocab=32_000)
    table = table_files.load(toy.table)
    settled = account(table, toy.specs(), toy.sizes, expected=Expected(None, ""), drop_mtp=False)
    grid = RankGrid((1,), size)
    slices, limit = toy.slices(size), 5 * 10**9
    return make_plan(settled, slices, size, max_shard_bytes=limit, grid=grid, leaders_per_stage=leaders)


def bare_rounds(plan: ExportPlan, rank: int) -> list[BareRound]:
    """The same bytes between the same ranks, round by round."""
    rounds = []
    for each in plan.part_of(rank).rounds:
        sends: Counter[int] = Counter()
        receives: Counter[int] = Counter()
        for given in each.gives:
            if given.shard.leader != rank:
                sends[given.shard.leader] += given.part.value_bytes
        for arrival in each.arrivals:
            receives[arrival.part.rank] += arrival.part.value_bytes
        rounds.append(BareRound(dict(sends), dict(receives)))
    return rounds


@dataclass(frozen=True)
class Timed:
    """When a rank began and ended, and the CPU seconds that it spent between."""

    begun: float
    ended: float
    cpu_seconds: float


def now() -> tuple[float, float]:
    """The machine's clock and this process's."""
    return time.perf_counter(), time.process_time()


def export_once(world: World, plan: ExportPlan) -> Timed:
    """From before the wire is made and anything is read until this rank's last bucket is there."""
    progress = Progress()
    world.liveness.counters = progress.snapshot
    ended: list[tuple[float, float]] = []

    def taken(gathered: Iterable[GatheredRound]) -> Iterator[None]:
        for each in gathered:
            each.arrived()
            each.done()
            if each.bucket is each.growing.shard.buckets[-1]:
                transfer._rings.images.give_back(each.growing.image)  # nobody freezes it
        ended.append(now())
        yield from ()

    with Transfer(
        plan.part_of(world.rank), world, Backend(GLOO, ""), Path(), progress, values_on=None
    ) as transfer:
        dist.barrier()
        begun = now()
        transfer.finish(taken(transfer.gather(transfer.read(Source()))), lambda: None)
    return Timed(begun[0], ended[0][0], ended[0][1] - begun[1])


def bare_once(exchange: BareExchange) -> Timed:
    """All rounds of this rank."""
    dist.barrier()
    begun = now()
    exchange.run()
    ended = now()
    return Timed(begun[0], ended[0], ended[1] - begun[1])


def together(own: Timed) -> dict[str, float]:
    """From the first rank's beginning to the last rank's end: all have the machine's one clock."""
    found = [own] * dist.get_world_size()
    dist.all_gather_object(found, own)
    seconds = max(each.ended for each in found) - min(each.begun for each in found)
    return {"seconds": seconds, "cpu_seconds": sum(each.cpu_seconds for each in found)}


def main() -> None:
    """Measure, and write it down."""
    file, repetitions, num_layers = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    dist.init_process_group("gloo")
    world = process_groups.beside(stall_seconds=120)
    rank, size = dist.get_rank(), dist.get_world_size()
    plans = {text: plan_of(num_layers, size, leaders) for text, leaders in LEADERS.items()}
    bares = {text: BareExchange(bare_rounds(plan, rank)) for text, plan in plans.items()}
    runs = []
    for repetition in range(repetitions + 1):
        for text, plan in plans.items():
            ways: dict[str, Callable[[], Timed]] = {
                BARE: lambda text=text: bare_once(bares[text]),  # type: ignore[misc]
                EXPORT: lambda plan=plan: export_once(world, plan),  # type: ignore[misc]
            }
            for way in sorted(ways, reverse=repetition % 2 == 1):
                measured, num_bytes = together(ways[way]()), sum(plan.links.values())
                runs.append(
                    {"ranks": size, "leaders": text, "repetition": repetition, "way": way, **measured}
                    | {
                        "wire_bytes": num_bytes,
                        "rounds": len(plan.part_of(0).rounds),
                        "model_bytes": plan.total_size,
                    }
                )
    if rank == 0:
        file.write_text(json.dumps(runs))
    world.close()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
