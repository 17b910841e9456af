"""The tensors of a folder, as its manifest records them: what is searched for a name, a shape or a digest."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING

from pp_export.core import dtypes, file_names, strict_json
from pp_export.core.errors import ExportError
from pp_export.disk import files
from pp_export.view.pages.sections import Column, Section, table

if TYPE_CHECKING:
    from pathlib import Path

    from pp_export.shards.manifests import ShardManifest

_MAX_BYTES = 2 << 30
_SHOWN = 100
"""Rows that a table shows at a time; the page's scripts know it too."""
STORED = (
    Column("shape", "shape", repeats=True),
    Column("dtype", choices=True, repeats=True),
    Column("bytes", "bytes"),
)
"""What tables of tensors have in common."""
IN_FILE = Column("file", "code", choices=True, repeats=True)


def shards_of(folder: Path) -> list[ShardManifest]:
    """The shards that the manifest of a folder records. Raises ExportError where it can't be read."""
    from pp_export.shards.manifests import ShardManifest

    path = folder / file_names.MANIFEST
    try:
        value = strict_json.parse_object(files.read_file(path, _MAX_BYTES))
        return [ShardManifest.from_json(shard) for shard in value["shards"]]
    except (strict_json.JsonError, KeyError, TypeError) as error:
        raise ExportError("the manifest is not what was written", where={"file": path}) from error


def note(count: int) -> str:
    """What a reader of so many rows should know."""
    return "All are searched and sorted; a hundred are shown at a time." if count > _SHOWN else ""


def num_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Of a tensor whose type is torch's word."""
    return prod(shape) * dtypes.from_torch(dtype).itemsize


def of_shards(shards: Sequence[ShardManifest]) -> list[Section]:
    """Files with their SHA-256, and tensors with the digest of their bytes."""
    tensors = sum(len(shard.tensors) for shard in shards)
    of_files = [
        Column("file", "code"),
        Column("tensors", "count"),
        Column("bytes", "bytes"),
        Column("SHA-256", "code"),
    ]
    columns = [
        Column("tensor", "code"),
        *STORED,
        Column("XXH3-128 of its bytes", "code"),
        IN_FILE,
    ]
    return [
        table(
            f"Files: {len(shards):,}",
            of_files,
            ([each.file, len(each.tensors), each.bytes, each.sha256] for each in shards),
        ),
        table(
            f"Tensors: {tensors:,}",
            columns,
            (
                [
                    each.name,
                    list(each.shape),
                    _dtype(each.dtype),
                    each.end - each.begin,
                    each.xxh3_128,
                    shard.file,
                ]
                for shard in shards
                for each in shard.tensors
            ),
            note(tensors),
        ),
    ]


def _dtype(name: str) -> str:
    """torch's word for a type, where it has one."""
    found = dtypes.from_safetensors(name)
    return name if found is None else found.torch_name
