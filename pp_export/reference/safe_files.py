"""Opens files of a folder that is not trusted: none outside of it, none that is no file, none too large."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pp_export.core.errors import ReferenceFolderError
from pp_export.core.file_names import CONFIG
from pp_export.core.strict_json import MAX_CONFIG_BYTES, MAX_JSON_BYTES, JsonError, parse_object
from pp_export.disk.files import is_regular

_OF_CHECKPOINTS = ("latest_checkpointed_iteration.txt", ".metadata")


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object by the strict grammar, except for Infinity, which Mamba configs on the Hub have."""
    data = read_bytes(folder, name, MAX_CONFIG_BYTES if name == CONFIG else MAX_JSON_BYTES)
    try:
        return parse_object(data, allow_infinity=True)
    except JsonError as error:
        raise not_json(folder / name, error) from error


def not_json(path: Path, error: JsonError) -> ReferenceFolderError:
    """The error of a file that should hold a JSON object."""
    what = f"{path.name} of the model folder is not a valid JSON object"
    return ReferenceFolderError(what, where={"file": path}, got=error)


def read_bytes(folder: Path, name: str, max_bytes: int) -> bytes:
    """What the file `name` holds; ReferenceFolderError above `max_bytes`."""
    with real_file(folder, name).open("rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise ReferenceFolderError(
            f"{name} of the model folder is larger than such a file can be",
            where={"file": folder / name},
            expected=f"at most {max_bytes:,} bytes",
        )
    return data


def real_file(folder: Path, name: str) -> Path:
    """The regular file that `name` leads to, inside the folder or the Hub cache that it belongs to."""
    real = check_inside(folder, name)
    if not is_regular(real):
        is_checkpoint = any((folder / file).exists() for file in _OF_CHECKPOINTS)
        raise ReferenceFolderError(
            f"the model folder has no file {name}",
            where={"file": folder / name},
            got="something that is no regular file" if real.exists() else None,
            advice="this is a Megatron checkpoint; give the Hugging Face folder of the model"
            if is_checkpoint
            else None,
        )
    return real


def check_inside(folder: Path, name: str) -> Path:
    """Where `name` leads to; ReferenceFolderError where that is neither in the folder nor in its cache."""
    real, root = Path(os.path.realpath(folder / name)), Path(os.path.realpath(folder))
    # In the Hub's cache, snapshots/REVISION/NAME is a link to blobs/HASH.
    blobs = [root.parents[1] / "blobs"] if root.parent.name == "snapshots" else []
    if not any(real.is_relative_to(allowed) for allowed in (root, *blobs)):
        what = "a link leads out of the model folder"
        raise ReferenceFolderError(what, where={"file": folder / name}, got=real)
    return real
