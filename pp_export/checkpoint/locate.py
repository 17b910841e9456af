"""Finds the iteration folder that a user means and says what kind of checkpoint it is."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pp_export.checkpoint.catalog import LEGACY
from pp_export.core.errors import CheckpointError

TRACKER = "latest_checkpointed_iteration.txt"
DCP = "DCP"
_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
_ITERATION_FOLDER = re.compile(r"(?:iter_(\d{7,})|release)")


def iteration_folder(checkpoint: Path, iteration: int | None) -> Path:
    """The folder to read: `checkpoint` itself when it is an iteration folder, else the tracker's or
    `iteration`'s.

    Raises CheckpointError where it is missing or `iteration` contradicts it.
    """
    if not checkpoint.is_dir():
        raise CheckpointError("the checkpoint folder does not exist", where={"folder": checkpoint})
    if (checkpoint / "weights").is_dir() and (checkpoint / "context").is_dir():
        return checkpoint / "weights"  # NeMo 2
    if _is_iteration_folder(checkpoint):
        if iteration is not None and iteration_of(checkpoint) not in (iteration, None):
            raise CheckpointError(
                "--iteration contradicts the iteration folder",
                where={"folder": checkpoint},
                expected=iteration,
                got=iteration_of(checkpoint),
                advice="give the checkpoint's root folder together with --iteration",
            )
        return checkpoint
    name = f"iter_{iteration:07d}" if iteration is not None else _tracked(checkpoint)
    folder = checkpoint / name
    if not folder.is_dir():
        present = sorted(
            entry.name for entry in checkpoint.iterdir() if _ITERATION_FOLDER.fullmatch(entry.name)
        )
        raise CheckpointError(
            f"the checkpoint has no folder {name}",
            where={"folder": checkpoint},
            got=", ".join(present) or "no iteration folders",
            advice="choose one with --iteration",
        )
    return folder


def _is_iteration_folder(folder: Path) -> bool:
    markers = (".metadata", "metadata.json", *_ADAPTER_FILES)
    return (
        any((folder / marker).exists() for marker in markers)
        or _legacy_folders(folder)
        or _is_unfinished(folder)
    )


def iteration_of(folder: Path) -> int | None:
    """The iteration number in a folder's name; None for `release` and other names."""
    match = _ITERATION_FOLDER.fullmatch(folder.name)
    return int(match[1]) if match and match[1] else None


def format_of(folder: Path) -> str:
    """`torch` or `DCP`. Raises CheckpointError where `folder` is no finished save of weights, saying what it
    is instead.
    """
    where = {"folder": folder}
    if (folder / "modelopt_state").exists():
        raise CheckpointError(
            "the checkpoint was quantized or pruned with ModelOpt; its weights are not the model's own",
            where=where,
            advice="export it with ModelOpt's own exporter",
        )
    if any((folder / name).exists() for name in _ADAPTER_FILES):
        raise CheckpointError(
            "the folder holds an adapter (LoRA) in the format of PEFT, not a model",
            where=where,
            advice="merge it into the base model's weights, and export those",
        )
    if _legacy_folders(folder):
        return LEGACY
    if _is_unfinished(folder):
        raise CheckpointError(
            "the save is unfinished: there are .distcp files but no .metadata, which is written last",
            where=where,
            advice="wait for an asynchronous save to end, or take an earlier iteration",
        )
    backend = _sharded_backend(folder)
    if backend is None and (folder / "common.pt").exists():
        raise unfinished(folder)
    if backend == "zarr":
        raise CheckpointError(
            "the checkpoint is stored as zarr arrays, which megatron-core dropped in release 0.16",
            where=where,
            expected="torch_dist",
            advice="load and save it with megatron-core 0.15 or older and --ckpt-format torch_dist",
        )
    if backend not in (None, "torch_dist"):
        raise CheckpointError(
            "the checkpoint was written by another backend", where=where, expected="torch_dist", got=backend
        )
    if not (folder / ".metadata").is_file():
        what = (
            "has metadata.json but no .metadata" if backend else "holds no Megatron checkpoint (no .metadata)"
        )
        raise CheckpointError(f"the folder {what}", where=where)
    return DCP


def unfinished(folder: Path) -> CheckpointError:
    """For a save of megatron-core without metadata.json, which comes last of all and tells it from plain
    DCP.
    """
    return CheckpointError(
        "the checkpoint has no metadata.json: the save is unfinished",
        where={"folder": folder},
        advice="wait for an asynchronous save to end, or take an earlier iteration",
    )


def dcp_format(folder: Path, args: Mapping[str, Any] | None) -> str:
    """The name of a DCP folder's format: `torch_dist`, or what the args say of a plain one."""
    if (folder / "metadata.json").is_file():
        return "torch_dist"
    return str((args or {}).get("ckpt_format") or "plain DCP")


def read(path: Path, offset: int = 0, length: int = -1) -> bytes:
    """The bytes of a small file, or some of them; CheckpointError where it can't be read."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(length)
    except OSError as error:
        raise CheckpointError(f"can't read: {error.strerror}", where={"file": path}) from error


def _legacy_folders(folder: Path) -> bool:
    return any(folder.glob("mp_rank_*"))


def _is_unfinished(folder: Path) -> bool:
    return not (folder / ".metadata").exists() and any(folder.glob("*.distcp"))


def _sharded_backend(folder: Path) -> str | None:
    """What metadata.json says; None where there is none, as in plain DCP."""
    path = folder / "metadata.json"
    if not path.is_file():
        return None
    try:
        return str(json.loads(path.read_text())["sharded_backend"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"metadata.json can't be read: {error!r}", where={"file": path}) from error


def _tracked(checkpoint: Path) -> str:
    tracker = checkpoint / TRACKER
    if not tracker.is_file():
        raise CheckpointError(
            f"there is neither an iteration folder's .metadata nor {TRACKER} here",
            where={"folder": checkpoint},
            advice="give the folder that holds the tracker file, an iter_* folder, or --iteration",
        )
    text = tracker.read_text(errors="replace").strip()
    if text == "release":
        return text
    if not text.isdecimal():
        raise CheckpointError(
            "the tracker file names no iteration", where={"file": tracker}, got=repr(text[:80])
        )
    return f"iter_{int(text):07d}"
