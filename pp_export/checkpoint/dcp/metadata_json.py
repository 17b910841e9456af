"""`metadata.json`, which megatron-core writes last of all: by which backends it stored the folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pp_export.checkpoint import locate
from pp_export.core.errors import CheckpointError
from pp_export.core.strict_json import parse_object

_MAX_BYTES = 1 << 20


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
        value = parse_object(locate.read_small(path, _MAX_BYTES))
        common = value.get("common_backend")
        return Backends(str(value["sharded_backend"]), None if common is None else str(common))
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"metadata.json can't be read: {error!r}", where={"file": path}) from error
