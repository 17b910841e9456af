"""Writes a frozen shard, or a range of one, and the JSON that says it is committed. Both come from the frozen
value and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from pp_export.core import digest
from pp_export.core.digest import STEP_BYTES
from pp_export.core.file_names import range_json, shard_json
from pp_export.disk import files
from pp_export.disk.shared_file import RangeFile, whole_blocks
from pp_export.shards.assemble import FrozenShard
from pp_export.shards.manifests import RangeManifest, ShardManifest, TensorManifest


def digest_shard(frozen: FrozenShard) -> ShardManifest | RangeManifest:
    """The manifest of a frozen shard: XXH3-128 of the header's and of each tensor's bytes, and SHA-256 of the
    file's; of a range, which is not all of them, its tensors', its own, and its edges.
    """
    range_, data = frozen.range, frozen.data
    tensors = tuple(
        TensorManifest(
            place.name,
            place.spec.dtype.safetensors_name,
            place.spec.shape,
            place.begin,
            place.end,
            digest.tensor_digest(data[own.begin : own.end]),
        )
        for place, own in zip(range_.tensors, range_.own_places)
    )
    if range_.is_whole:
        header = digest.tensor_digest(frozen.image[: len(range_.header)])
        whole = _sha256(frozen.image)
        return ShardManifest(
            frozen.file, len(frozen.image), whole, header, tensors, frozen.not_finite, frozen.quantized
        )
    head, _, tail = _cut(frozen)
    return RangeManifest(
        frozen.file,
        range_.number,
        range_.begin,
        range_.end,
        tensors,
        frozen.not_finite,
        bytes(head),
        bytes(tail),
        digest.tensor_digest(frozen.image),
        frozen.quantized,
    )


def write_shard(frozen: FrozenShard, staging: Path, on_bytes: Callable[[int], None]) -> files.OpenFile:
    """The shard's bytes, without edges, in a file that still has to be committed; `on_bytes` hears of every
    step.
    """
    path, data = staging / frozen.file, frozen.image
    if frozen.range.is_whole:
        file: files.OpenFile = files.NewFile(path, len(data), direct=True)
    else:
        file, (_, data, _) = RangeFile(path, frozen.range.begin, frozen.range.end), _cut(frozen)
        on_bytes(len(frozen.image) - len(data))
    with file:
        for begin in range(0, len(data), files.DIRECT_STEP_BYTES):
            step = data[begin : begin + files.DIRECT_STEP_BYTES]
            file.write(step)
            on_bytes(len(step))
    return file


def commit_shard(file: files.OpenFile, manifest: ShardManifest | RangeManifest, staging: Path) -> None:
    """Bytes durable, those of a whole shard under the final name; then the JSON: its presence means that the
    shard, or the range, is committed.
    """
    file.commit()
    if isinstance(manifest, ShardManifest):
        name = shard_json(manifest.file)
    else:
        name = range_json(manifest.file, manifest.number)
    files.write_file(staging / name, [json.dumps(manifest.to_json()).encode()])


def _cut(frozen: FrozenShard) -> tuple[memoryview, memoryview, memoryview]:
    """The image of a range as the edge before, the whole blocks, and the edge behind."""
    begin, image = frozen.range.begin, frozen.image
    first, last = whole_blocks(begin, frozen.range.end)
    return image[: first - begin], image[first - begin : last - begin], image[last - begin :]


def _sha256(image: memoryview) -> str:
    sha256 = digest.sha256()
    for begin in range(0, len(image), STEP_BYTES):
        sha256.update(image[begin : begin + STEP_BYTES])
    return sha256.hexdigest()
