"""What an earlier run has committed to a staging folder: found by its shard JSONs, held against the plan, and
proved by reading it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import xxhash

from pp_export.core import file_names
from pp_export.core.digest import STEP_BYTES, tensor_digest
from pp_export.core.errors import VerificationError
from pp_export.core.file_names import range_json, shard_json
from pp_export.disk import files
from pp_export.disk.shared_file import growing_file, whole_blocks
from pp_export.planning.shard_plan import ShardPlan
from pp_export.shards.join import complete_manifest, planned_range, read_manifest, read_range
from pp_export.verification import digest_staged_shard
from pp_export.verification.reading import UncachedFile, make_buffer


@dataclass(frozen=True)
class Committed:
    """A `file`, or the range `number` of one, whose JSON says that all of its `num_bytes` are on disk."""

    file: str
    number: int | None
    num_bytes: int

    @property
    def record(self) -> str:
        """Its JSON, relative to the staging folder."""
        return shard_json(self.file) if self.number is None else range_json(self.file, self.number)

    @property
    def data(self) -> str:
        """Where its bytes are, relative to the staging folder."""
        return self.file if self.number is None else growing_file(Path(self.file)).name


def find_committed(staging: Path, plan_files: Iterable[Sequence[ShardPlan]]) -> list[Committed]:
    """What of the planned files is said to be there; nothing but JSON is read. What is not as it is planned
    now does not count.
    """
    there = {path.name for path in (staging / file_names.SHARD_JSONS).iterdir()}
    found: list[Committed] = []
    for ranges in plan_files:
        file, num_bytes = ranges[0].file, ranges[0].range.file_bytes
        if Path(shard_json(file)).name in there and _is_as_planned(staging, ranges):
            found.append(Committed(file, None, num_bytes))
        elif len(ranges) > 1:
            found += [
                Committed(file, shard.range.number, shard.num_bytes)
                for shard in ranges
                if Path(range_json(file, shard.range.number)).name in there and _is_range(staging, shard)
            ]
    return found


def fault_of(staging: Path, committed: Committed, on_bytes: Callable[[int], None]) -> str | None:
    """What is wrong with it on disk, or None; every byte is read, past the page cache. The SHA-256 is taken
    anew: the JSON, whose word it is otherwise, may be damaged too. A joined file gets it into its JSON.
    """
    if committed.number is not None:
        return _fault_of_range(staging, committed.file, committed.number, on_bytes)
    recorded = read_manifest(staging, committed.file).sha256
    sha256, faults = digest_staged_shard(staging, committed.file, on_bytes)
    if faults:
        return "; ".join(map(str, faults))
    if not recorded:
        complete_manifest(staging, committed.file, sha256)
    elif sha256 != recorded:
        return f"{committed.file}: SHA-256 is {sha256}; its JSON says {recorded}"
    return None


def drop(staging: Path, committed: Committed) -> None:
    """Forget what was said to be there and isn't; its bytes are written anew."""
    files.remove_file(staging / committed.record)
    if committed.number is None:
        files.remove_file(staging / committed.data)


def _is_as_planned(staging: Path, ranges: Sequence[ShardPlan]) -> bool:
    try:
        found = read_manifest(staging, ranges[0].file)
    except VerificationError:
        return False
    first = ranges[0].range
    planned = [
        (place.name, place.spec.dtype.safetensors_name, place.spec.shape, place.begin, place.end)
        for each in ranges
        for place in each.tensors
    ]
    return (found.file, found.bytes, found.header_xxh3_128) == (
        first.file,
        first.file_bytes,
        tensor_digest(first.header),
    ) and planned == [(each.name, each.dtype, each.shape, each.begin, each.end) for each in found.tensors]


def _is_range(staging: Path, shard: ShardPlan) -> bool:
    try:
        planned_range(staging, shard)
    except VerificationError:
        return False
    return True


def _fault_of_range(staging: Path, file: str, number: int, on_bytes: Callable[[int], None]) -> str | None:
    recorded = read_range(staging, file, number)
    first, last = whole_blocks(recorded.begin, recorded.end)
    running = xxhash.xxh3_128(recorded.head)
    try:
        with UncachedFile(growing_file(staging / file)) as source:
            source.forget()
            buffer = make_buffer(STEP_BYTES)
            for begin in range(first, last, STEP_BYTES):
                step = source.read(begin, min(STEP_BYTES, last - begin), buffer)
                running.update(step)
                on_bytes(len(step))
    except OSError as error:
        return f"{file}: its range {number} can't be read: {error.strerror}"
    running.update(recorded.tail)
    if running.hexdigest() != recorded.xxh3_128:
        return f"{file}: the bytes of its range {number} are not those that were recorded"
    return None
