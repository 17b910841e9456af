"""Merges what the leaders wrote: the index comes from the headers on disk, held against the shard JSONs and
the plan.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import safe_open

from pp_export.core import file_names
from pp_export.core.digest import STEP_BYTES
from pp_export.core.errors import VerificationError
from pp_export.disk import files, folders
from pp_export.disk.calls import attempt
from pp_export.planning.export_plan import ExportPlan
from pp_export.planning.shard_plan import ShardPlan
from pp_export.shards import manifests
from pp_export.shards.join import join_file, read_manifest
from pp_export.shards.manifests import ShardManifest

_NUM_THREADS = 8


def merge_shards(staging: Path, plan: ExportPlan) -> list[ShardManifest]:
    """The manifests of all shards in file order; called on rank 0 when every leader has committed.

    Every name must be in the plan's file, in that file's JSON and in its header, as the safetensors library
    reads it. A file of several ranges becomes whole before. Raises VerificationError listing every
    difference.
    """
    with ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="merge") as pool:
        merged = list(pool.map(partial(_merge, staging, kept=plan.kept.files), plan.files))
    findings = [finding for _, of_file in merged for finding in of_file]
    if findings:
        raise VerificationError("shards are not what was planned", findings=findings)
    return [shard for shard, _ in merged]


def _merge(
    staging: Path, ranges: Sequence[ShardPlan], *, kept: Collection[str]
) -> tuple[ShardManifest, list[str]]:
    """The manifest of one file, and where it differs from the plan. A file of several ranges is joined,
    unless it was `kept` whole.
    """
    file = ranges[0].file
    is_whole = len(ranges) == 1 or file in kept
    shard = read_manifest(staging, file) if is_whole else join_file(staging, ranges)
    planned = {
        place.name: (place.spec.dtype.safetensors_name, place.spec.shape)
        for each in ranges
        for place in each.tensors
    }
    recorded = {tensor.name: (tensor.dtype, tensor.shape) for tensor in shard.tensors}
    with safe_open(staging / file, framework="numpy") as opened:
        parts = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118  not a mapping
        on_disk = {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in parts.items()}
    return shard, [
        f"{file}: {name} differs between plan, shard JSON and header"
        for name in sorted({*planned, *recorded, *on_disk})
        if not planned.get(name) == recorded.get(name) == on_disk.get(name)
    ]


def write_index(staging: Path, plan: ExportPlan, shards: Sequence[ShardManifest]) -> None:
    """`model.safetensors.index.json`, with true sizes."""
    weight_map = {tensor.name: shard.file for shard in shards for tensor in shard.tensors}
    total = sum(tensor.end - tensor.begin for shard in shards for tensor in shard.tensors)
    value = manifests.index(weight_map, total, plan.total_parameters)
    files.write_file(staging / file_names.INDEX, [_json_bytes(value)])


def seal(
    staging: Path,
    plan: ExportPlan,
    shards: Sequence[ShardManifest],
    provenance: Mapping[str, Any],
    contents: str,
) -> None:
    """Fold the shard JSONs into the manifest, and write it and SHA256SUMS after everything else."""
    folders.remove_folder(staging / file_names.SHARD_JSONS)
    digests = {shard.file: (shard.bytes, shard.sha256) for shard in shards}
    for path in sorted(staging.rglob("*")):
        name = path.relative_to(staging).as_posix()
        if path.is_file() and name not in digests:
            digests[name] = attempt("read", path, digest_file, path)
    value = manifests.manifest(
        shards,
        digests,
        total_size=plan.total_size,
        total_parameters=plan.total_parameters,
        provenance=provenance,
        contents=contents,
    )
    files.write_file(staging / file_names.MANIFEST, [_json_lines(value)])
    files.write_file(staging / file_names.SUMS, [manifests.sums(digests).encode()])


def digest_file(path: Path) -> tuple[int, str]:
    """Bytes and hex SHA-256 of a small file on disk."""
    sha256, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while data := file.read(STEP_BYTES):
            sha256.update(data)
            size += len(data)
    return size, sha256.hexdigest()


def _json_lines(value: Mapping[str, Any]) -> bytes:
    """An object with a line for each entry, and for each element of those that are lists. An indented text of
    a hundred thousand tensors would take seconds.
    """

    def image(entry: Any) -> str:
        if not isinstance(entry, list) or not entry:
            return json.dumps(entry, ensure_ascii=False)
        return "[\n  " + ",\n  ".join(map(image, entry)) + "\n ]"

    entries = (f" {json.dumps(key)}: {image(entry)}" for key, entry in value.items())
    return ("{\n" + ",\n".join(entries) + "\n}\n").encode()


def _json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()
