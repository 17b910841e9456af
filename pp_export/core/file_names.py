"""The names of the files of a Hugging Face folder that is exported, read or verified."""

from __future__ import annotations

import re

CONFIG = "config.json"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""In place of config.json and weights, where a folder is an adapter for a model."""
SINGLE_WEIGHTS = "model.safetensors"
"""The one file of a model that was not cut; loaders prefer it to an index."""
INDEX = "model.safetensors.index.json"
MANIFEST = "export_manifest.json"
SUMS = "SHA256SUMS"
SHARD_JSONS = ".shards"
"""The folder, inside the staging folder only, of the JSON beside each shard (`shard_json`)."""
WORK = f"{SHARD_JSONS}/work.json"
"""What the shards of a staging folder are made from: only the same work may go on with them."""

_WEIGHT_FILE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,242}\.safetensors")
_NUMBERED = re.compile(r"model-([0-9]{5,9})-of-([0-9]{5,9})\.safetensors")


def is_weight_file(name: object) -> bool:
    """Whether an index may name this file: one plain component of ASCII, without a leading dot."""
    return isinstance(name, str) and _WEIGHT_FILE.fullmatch(name) is not None


def numbered_weights(number: int, total: int) -> str:
    """The name of file `number` (from 1) of the `total` files into which a model is cut."""
    return f"model-{number:05d}-of-{total:05d}.safetensors"


def number_of(name: str) -> tuple[int, int] | None:
    """N and M of a file named model-N-of-M, or None."""
    match = _NUMBERED.fullmatch(name)
    return (int(match[1]), int(match[2])) if match else None


def shard_json(file: str) -> str:
    """Where, relative to the staging folder, the JSON of the shard `file` lies."""
    return f"{SHARD_JSONS}/{file}.json"


def range_json(file: str, number: int) -> str:
    """The same of range `number` of a shard that several ranks write."""
    return f"{SHARD_JSONS}/{file}.{number}.json"
