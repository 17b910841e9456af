"""Finds the iteration folder that a user means and says what kind of checkpoint it is."""

from __future__ import annotations

import json
import re
from pathlib import Path

from pp_export.errors import CheckpointError

TRACKER = "latest_checkpointed_iteration.txt"
_ITERATION_FOLDER = re.compile(r"(?:iter_(\d{7,})|release)")


def iteration_folder(checkpoint: Path, iteration: int | None) -> Path:
    """The folder to read: `checkpoint` itself when it is an iteration folder, else the tracker's or
    `iteration`'s.

    Raises CheckpointError where it is missing or `iteration` contradicts it.
    """
    if not checkpoint.is_dir():
        raise CheckpointError("the checkpoint folder does not exist", where={"folder": checkpoint})
    if any((checkpoint / marker).exists() for marker in (".metadata", "metadata.json")) or _is_unfinished(
        checkpoint
    ):
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


def iteration_of(folder: Path) -> int | None:
    """The iteration number in a folder's name; None for `release` and other names."""
    match = _ITERATION_FOLDER.fullmatch(folder.name)
    return int(match[1]) if match and match[1] else None


def require_torch_dist(folder: Path) -> None:
    """Raise CheckpointError unless `folder` is a finished torch_dist save, saying what it is instead."""
    where = {"folder": folder}
    if (folder / "modelopt_state").exists():
        raise CheckpointError(
            "the checkpoint was quantized or pruned with ModelOpt; its weights are not the model's own",
            where=where,
            advice="export it with ModelOpt's own exporter",
        )
    if any(folder.glob("mp_rank_*")):
        raise CheckpointError(
            "this is a checkpoint in the legacy `torch` format (mp_rank_* folders)",
            where=where,
            expected="torch_dist",
            advice="save or convert it with Megatron's --ckpt-format torch_dist",
        )
    if _is_unfinished(folder):
        raise CheckpointError(
            "the save is unfinished: there are .distcp files but no .metadata, which is written last",
            where=where,
            advice="wait for an asynchronous save to end, or take an earlier iteration",
        )
    if not (folder / ".metadata").is_file() and not (folder / "metadata.json").is_file():
        raise CheckpointError("there is no Megatron checkpoint here (no .metadata)", where=where)
    backend = _sharded_backend(folder)
    if backend != "torch_dist":
        raise CheckpointError(
            "the checkpoint was written by another backend", where=where, expected="torch_dist", got=backend
        )
    if not (folder / ".metadata").is_file():
        raise CheckpointError("the checkpoint has metadata.json but no .metadata", where=where)


def _is_unfinished(folder: Path) -> bool:
    return not (folder / ".metadata").exists() and any(folder.glob("*.distcp"))


def _sharded_backend(folder: Path) -> str:
    path = folder / "metadata.json"
    if not path.is_file():
        raise CheckpointError(
            "the checkpoint has no metadata.json: the save is unfinished, or this is a plain DCP folder",
            where={"folder": folder},
            expected="torch_dist as megatron-core's dist_checkpointing writes it",
        )
    try:
        return str(json.loads(path.read_text())["sharded_backend"])
    except (ValueError, KeyError, TypeError) as error:
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
