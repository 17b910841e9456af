"""Writes the `.metadata` of a catalog with torch's own classes, beside files that have holes for bytes."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from pp_export.checkpoint.catalog import Catalog


def write_checkpoint(catalog: Catalog, folder: Path) -> None:
    """A folder that is described as `catalog`; the values in its files are never written."""
    folder.mkdir()
    entries: dict[str, Any] = {}
    places: dict[Any, Any] = {}
    ends = [0] * len(catalog.files)
    for tensor in catalog.tensors:
        chunks = []
        for number, (box, item, _, _) in enumerate(tensor.boxes):
            offset = torch.Size(box.offset)
            chunks.append(ChunkStorageMetadata(offset, torch.Size(box.shape)))
            stored = catalog.stored_items[item]
            index = MetadataIndex(tensor.key, offset, number)
            places[index] = _StorageInfo(catalog.files[stored.file], stored.offset, stored.length)
            ends[stored.file] = max(ends[stored.file], stored.offset + stored.length)
        properties = TensorProperties(dtype=getattr(torch, tensor.dtype.torch_name))
        entries[tensor.key] = TensorStorageMetadata(properties, torch.Size(tensor.shape), chunks)
    with (folder / ".metadata").open("wb") as file:
        pickle.dump(Metadata(entries, None, places), file)
    for name, end in zip(catalog.files, ends):
        with (folder / name).open("wb") as file:
            file.truncate(end)
    backends = {"sharded_backend": "torch_dist", "sharded_backend_version": 1}
    (folder / "metadata.json").write_text(json.dumps(backends))
