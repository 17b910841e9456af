"""What a plan makes each rank do, without names of tensors: all that a prediction needs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from pp_export.planning.export_plan import ExportPlan


@dataclass(frozen=True)
class ShardWork:
    """A shard: its leader, its bytes, how many of them are encoded, and how many bytes of the checkpoint each
    rank reads for it, its leader among them.
    """

    file: str
    leader: int
    num_bytes: int
    encoded_bytes: int
    read_by: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class FileWork:
    """A file: its shards, in the order of its bytes, and the rank that re-reads it; None: nobody does."""

    file: str
    shards: tuple[ShardWork, ...]
    verifier: int | None

    @property
    def num_bytes(self) -> int:
        return sum(shard.num_bytes for shard in self.shards)


@dataclass(frozen=True)
class Work:
    """All files, in order, of a checkpoint of so many stored boxes."""

    world_size: int
    num_boxes: int
    files: tuple[FileWork, ...]


def work_of(plan: ExportPlan, num_boxes: int, *, verify: bool) -> Work:
    """The work of a plan for a checkpoint of `num_boxes`; linear in them. Files that several ranks write are
    re-read in any case.
    """
    files = []
    for ranges, verifier in zip(plan.files, plan.verifiers()):
        shards = []
        for shard in ranges:
            read_by: Counter[int] = Counter()
            for bucket in shard.buckets:
                for part in bucket.parts:
                    read_by[part.rank] += part.value_bytes
            parts = tuple(sorted(read_by.items()))
            shards.append(ShardWork(shard.file, shard.leader, shard.num_bytes, shard.scratch_bytes, parts))
        is_read_back = verify or len(ranges) > 1
        files.append(FileWork(ranges[0].file, tuple(shards), verifier if is_read_back else None))
    return Work(plan.world_size, num_boxes, tuple(files))
