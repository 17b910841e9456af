"""Step 8: every shard is re-read by a rank that did not write it, and is what was frozen in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from pp_export.core.errors import VerificationError
from pp_export.distributed.world import World
from pp_export.planning.rank_plan import FileToVerify, RankPlan
from pp_export.steps.workers import Crew, Progress
from pp_export.verification import digest_staged_shard, verify_staged_shard


def verify_file(rank: int, staging: Path, file: FileToVerify, progress: Progress) -> str:
    """Re-read a file from the disk; any thread of `rank`. Gives the SHA-256 of one that several ranks wrote,
    since nobody knows it before.

    Raises VerificationError with all faults of the file.
    """

    def count(num_bytes: int) -> None:
        progress.add("verified", num_bytes)

    progress.doing(f"re-reading {file.file}")
    with progress.recorder.span("verifies", num_bytes=file.num_bytes, file=file.file):
        if file.is_whole:
            sha256, faults = "", verify_staged_shard(staging, file.file, count)
        else:
            sha256, faults = digest_staged_shard(staging, file.file, count)
    if faults:
        raise VerificationError(
            "what is on disk is not what was frozen in memory",
            where={"rank": rank, "operation": "verify", "file": staging / file.file},
            advice="the target's filesystem damages data; export to another one",
            findings=[str(fault) for fault in faults],
        )
    return sha256


def verify_joined(
    world: World,
    staging: Path,
    plan: RankPlan,
    progress: Progress,
    on_poll: Callable[[], None],
) -> Mapping[str, str]:
    """Re-read the files of several ranges, which exist only once rank 0 has joined them; called by all ranks.
    The SHA-256 of those that this rank is to re-read.
    """
    joined = [file for file in plan.to_verify if not file.is_whole]
    sums: dict[str, str] = {}
    if joined:
        crew = Crew(world)

        def verify(file: FileToVerify) -> None:
            sums[file.file] = verify_file(world.rank, staging, file, progress)

        crew.exhaust("finisher", crew.in_parallel("verifier", joined, verify, plan.capacity.threads))
        crew.run(on_poll)
    return sums
