"""Writes a frozen shard, and the JSON that says it is committed. Both come from the frozen value and nothing
else.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from pp_export.core import digest
from pp_export.core.digest import STEP_BYTES
from pp_export.core.file_names import shard_json
from pp_export.disk import files
from pp_export.shards.assemble import FrozenShard
from pp_export.shards.manifests import ShardManifest, TensorManifest


def digest_shard(frozen: FrozenShard) -> ShardManifest:
    """The manifest of a frozen shard: SHA-256 of the file's bytes, XXH3-128 of each tensor's."""
    sha256 = digest.sha256()
    for begin in range(0, len(frozen.image), STEP_BYTES):
        sha256.update(frozen.image[begin : begin + STEP_BYTES])
    data = frozen.data
    tensors = tuple(
        TensorManifest(
            place.name,
            place.spec.dtype.safetensors_name,
            place.spec.shape,
            place.begin,
            place.end,
            digest.tensor_digest(data[place.begin : place.end]),
        )
        for place in frozen.tensors
    )
    return ShardManifest(frozen.file, len(frozen.image), sha256.hexdigest(), tensors, frozen.not_finite)


def write_shard(frozen: FrozenShard, staging: Path, on_bytes: Callable[[int], None]) -> files.NewFile:
    """The shard's bytes in a file that still has to be committed; `on_bytes` hears of every step."""
    file = files.NewFile(staging / frozen.file, len(frozen.image), direct=True)
    for begin in range(0, len(frozen.image), files.DIRECT_STEP_BYTES):
        step = frozen.image[begin : begin + files.DIRECT_STEP_BYTES]
        file.write(step)
        on_bytes(len(step))
    return file


def commit_shard(file: files.NewFile, shard_manifest: ShardManifest, staging: Path) -> None:
    """Bytes durable under the final name, then the shard JSON: its presence means that the shard is
    committed.
    """
    file.commit()
    path = staging / shard_json(shard_manifest.file)
    files.write_file(path, [json.dumps(shard_manifest.to_json()).encode()])
