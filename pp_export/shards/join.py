"""Makes one file of the ranges that several leaders wrote, and one shard manifest of what they recorded."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from pp_export.core.digest import tensor_digest
from pp_export.core.errors import VerificationError
from pp_export.core.file_names import range_json, shard_json
from pp_export.disk import files, shared_file
from pp_export.planning.shard_plan import ShardPlan
from pp_export.shards.manifests import RangeManifest, ShardManifest

Manifest = TypeVar("Manifest")


def read_manifest(staging: Path, file: str) -> ShardManifest:
    """The shard JSON of a committed shard."""
    return _read(staging / shard_json(file), ShardManifest.from_json)


def complete_manifest(staging: Path, file: str, sha256: str) -> None:
    """Put the SHA-256 of a joined file into its shard JSON."""
    manifest = replace(read_manifest(staging, file), sha256=sha256)
    files.write_file(staging / shard_json(file), [json.dumps(manifest.to_json()).encode()])


def read_range(staging: Path, file: str, number: int) -> RangeManifest:
    """The JSON of a committed range."""
    return _read(staging / range_json(file, number), RangeManifest.from_json)


def join_file(staging: Path, ranges: Sequence[ShardPlan]) -> ShardManifest:
    """Write what is left of a file, name it, and leave one shard JSON of it, without a SHA-256 yet; called on
    rank 0 when the leaders of all its `ranges` have committed.

    Raises VerificationError for a range that is missing or is not the one that was planned.
    """
    file, num_bytes = ranges[0].file, ranges[0].range.file_bytes
    found = [planned_range(staging, shard) for shard in ranges]
    edges = [
        edge for each in found for edge in ((each.begin, each.head), (each.end - len(each.tail), each.tail))
    ]
    shared_file.join_ranges(staging / file, num_bytes, edges)
    manifest = ShardManifest(
        file,
        num_bytes,
        "",
        tensor_digest(ranges[0].range.header),
        tuple(tensor for each in found for tensor in each.tensors),
        {name: count for each in found for name, count in each.not_finite.items()},
        {name: error for each in found for name, error in each.quantized.items()},
    )
    files.write_file(staging / shard_json(file), [json.dumps(manifest.to_json()).encode()])
    return manifest


def planned_range(staging: Path, shard: ShardPlan) -> RangeManifest:
    """The JSON of a committed range, which must be the one that is planned; else VerificationError."""
    planned, path = shard.range, staging / range_json(shard.file, shard.range.number)
    found = read_range(staging, shard.file, planned.number)
    first, last = shared_file.whole_blocks(planned.begin, planned.end)
    differences = [
        f"{what}: {got}, not {expected}"
        for what, got, expected in (
            ("file", found.file, shard.file),
            ("number", found.number, planned.number),
            ("begin", found.begin, planned.begin),
            ("end", found.end, planned.end),
            ("bytes of head", len(found.head), first - planned.begin),
            ("bytes of tail", len(found.tail), planned.end - last),
            (
                "tensors",
                [(tensor.name, tensor.begin, tensor.end) for tensor in found.tensors],
                [(place.name, place.begin, place.end) for place in planned.tensors],
            ),
        )
        if got != expected
    ]
    if differences:
        raise VerificationError(
            "a range is not the one that was planned", where={"file": path}, findings=differences
        )
    return found


def _read(path: Path, parse: Callable[[Mapping[str, Any]], Manifest]) -> Manifest:
    try:
        return parse(json.loads(path.read_text()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise VerificationError(f"the shard JSON can't be read: {error!r}", where={"file": path}) from error
