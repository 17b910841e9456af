"""Step 9: every shard is re-read by a rank that did not write it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pp_export.core.errors import VerificationError
from pp_export.distributed.world import World
from pp_export.planning.export_plan import ExportPlan
from pp_export.steps.workers import Crew, Progress, each_of
from pp_export.verification import verify_staged_shard

_NUM_WORKERS, _NUM_WORKERS_ALONE = 2, 4


def verify_shards(
    world: World, staging: Path, plan: ExportPlan, progress: Progress, on_poll: Callable[[], None]
) -> None:
    """Re-read every byte from the disk; called by all ranks, and over when all are done. A rank reads its
    own shards in a world of one only. Raises VerificationError with all faults of the first file that has
    one.
    """
    mine = [shard.file for shard, reader in zip(plan.shards, plan.verifiers()) if reader == world.rank]

    def verify(file: str) -> None:
        faults = verify_staged_shard(staging, file, lambda count: progress.add("verified", count))
        if faults:
            raise VerificationError(
                "what is on disk is not what was frozen in memory",
                where={"rank": world.rank, "operation": "verify", "file": staging / file},
                advice="the target's filesystem damages data; export to another one",
                findings=[str(fault) for fault in faults],
            )

    crew = Crew(world)
    each_of(mine, verify, crew, _NUM_WORKERS_ALONE if world.size == 1 else _NUM_WORKERS)
    crew.run(on_poll)
    world.control.together(lambda: None)
