"""Step 9: every shard is re-read by a rank that did not write it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from pp_export.core.errors import VerificationError
from pp_export.distributed.world import World
from pp_export.planning.export_plan import ExportPlan
from pp_export.planning.file_layout import FileRange
from pp_export.steps.workers import Crew, Progress, each_of
from pp_export.verification import digest_staged_shard, verify_staged_shard

_NUM_WORKERS, _NUM_WORKERS_ALONE = 2, 4


def verify_shards(
    world: World,
    staging: Path,
    plan: ExportPlan,
    progress: Progress,
    on_poll: Callable[[], None],
    *,
    all_files: bool,
) -> Mapping[str, str]:
    """Re-read every byte from the disk; called by all ranks, and over when all are done. A rank reads what it
    wrote only where there is nobody else.

    Without `all_files` only those of several ranges are read: their SHA-256 is not known before. On rank 0,
    returns it, by file. Raises VerificationError with all faults of the first file that has one.
    """
    to_read = [
        (ranges[0].range, reader)
        for ranges, reader in zip(plan.files, plan.verifiers())
        if all_files or len(ranges) > 1
    ]
    sha256_of: dict[str, str] = {}

    def count(num_bytes: int) -> None:
        progress.add("verified", num_bytes)

    def verify(first: FileRange) -> None:
        file = first.layout.file
        if first.is_whole:
            faults = verify_staged_shard(staging, file, count)
        else:
            sha256_of[file], faults = digest_staged_shard(staging, file, count)
        if faults:
            raise VerificationError(
                "what is on disk is not what was frozen in memory",
                where={"rank": world.rank, "operation": "verify", "file": staging / file},
                advice="the target's filesystem damages data; export to another one",
                findings=[str(fault) for fault in faults],
            )

    crew = Crew(world)
    mine = [first for first, reader in to_read if reader == world.rank]
    each_of(mine, verify, crew, _NUM_WORKERS_ALONE if world.size == 1 else _NUM_WORKERS)
    crew.run(on_poll)
    world.control.together(lambda: None)
    if all(first.is_whole for first, _ in to_read):
        return {}
    found = [json.loads(image) for image in world.control.gather(json.dumps(sha256_of).encode())]
    return {file: sha256 for of_rank in found for file, sha256 in of_rank.items()}
