"""`metadata.json`, which megatron-core writes last of all: by which backends it stored the folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pp_export.core.errors import CheckpointError


@dataclass(frozen=True)
class Backends:
    """How tensors were stored; and how the state that all ranks share, None where it is an item like others
    (megatron-core 0.19 and newer).
    """

    sharded: str
    common: str | None


def backends(folder: Path) -> Backends | None:
    """What the file says; None where there is none, as in plain DCP."""
    path = folder / "metadata.json"
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text())
        common = value.get("common_backend")
        return Backends(str(value["sharded_backend"]), None if common is None else str(common))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"metadata.json can't be read: {error!r}", where={"file": path}) from error
