"""Finds the iteration folder that a user means."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from pp_export.core.errors import CheckpointError
from pp_export.core.file_names import CONFIG

TRACKER = "latest_checkpointed_iteration.txt"
_MAX_TRACKER_BYTES = 100
_ITERATION_FOLDER = re.compile(r"(?:iter_(\d{7,})|release)")


def iteration_folder(checkpoint: Path, iteration: int | None, is_save: Callable[[Path], bool]) -> Path:
    """The folder to read: `checkpoint` itself where it is a save, else `iteration`'s or the one that the
    tracker file names.

    Raises CheckpointError where it is missing or `iteration` contradicts it.
    """
    if not checkpoint.is_dir():
        is_there = checkpoint.exists()
        raise CheckpointError(
            "the checkpoint is a file, not a folder" if is_there else "the checkpoint folder does not exist",
            where={"folder": checkpoint},
            advice="give the folder that it lies in"
            if is_there
            else "check the path: it must be a folder on this machine, or on a filesystem that it mounts",
        )
    if is_nemo(checkpoint):
        return checkpoint / "weights"
    if is_save(checkpoint):
        if iteration is not None and iteration_of(checkpoint) not in (iteration, None):
            raise CheckpointError(
                "--iteration and --checkpoint, an iteration folder, name different iterations",
                where={"folder": checkpoint},
                expected=iteration,
                got=iteration_of(checkpoint),
                advice="leave --iteration out, or give the checkpoint's root folder",
            )
        return checkpoint
    folder = checkpoint / _tracked(checkpoint) if iteration is None else folder_of(checkpoint, iteration)
    if not folder.is_dir():
        present = sorted(
            entry.name for entry in checkpoint.iterdir() if _ITERATION_FOLDER.fullmatch(entry.name)
        )
        raise CheckpointError(
            f"the checkpoint has no folder {folder.name}",
            where={"folder": checkpoint},
            got=", ".join(present) or "no iteration folders",
            advice="choose one with --iteration",
        )
    return folder


def is_nemo(checkpoint: Path) -> bool:
    """Whether it is a save of NeMo 2."""
    return (checkpoint / "weights").is_dir() and (checkpoint / "context").is_dir()


def folder_of(checkpoint: Path, iteration: int) -> Path:
    """Where an iteration's save lies below the root."""
    return checkpoint / f"iter_{iteration:07d}"


def iterations(checkpoint: Path) -> list[int]:
    """The iterations that have a folder below the root, finished or not, in ascending order; none where there
    is no root yet. Raises CheckpointError where it can't be looked into.
    """
    try:
        found = [iteration_of(Path(name)) for name in os.listdir(checkpoint)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(
            f"the checkpoint's folder can't be read: {error.strerror}", where={"folder": checkpoint}
        ) from error
    return sorted(number for number in found if number is not None)


def latest(checkpoint: Path) -> int | None:
    """The iteration that the tracker file names; None where there is none yet, or `release`."""
    if not (checkpoint / TRACKER).is_file():
        return None
    return iteration_of(Path(_tracked(checkpoint)))


def iteration_of(folder: Path) -> int | None:
    """The iteration number in a folder's name; None for `release` and other names."""
    match = _ITERATION_FOLDER.fullmatch(folder.name)
    return int(match[1]) if match and match[1] else None


def renamed(folder: Path, iteration: int | None) -> tuple[str, ...]:
    """What the user should know where a folder's name says another iteration than the state in it."""
    named = iteration_of(folder)
    if named is None or iteration is None or named == iteration:
        return ()
    return (f"the folder's name says iteration {named}, the state in it {iteration}: it was renamed",)


def read(path: Path, offset: int = 0, length: int = -1) -> bytes:
    """The bytes of a small file, or some of them; CheckpointError where it can't be read."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(length)
    except OSError as error:
        raise CheckpointError(f"can't read: {error.strerror}", where={"file": path}) from error


def read_small(path: Path, max_bytes: int) -> bytes:
    """All bytes of a file that can't be large; CheckpointError where it is, or can't be read."""
    try:
        is_large = path.stat().st_size > max_bytes
    except OSError as error:
        raise CheckpointError(f"can't read: {error.strerror}", where={"file": path}) from error
    data = b"" if is_large else read(path, 0, max_bytes + 1)
    if is_large or len(data) > max_bytes:
        raise CheckpointError(
            f"{path.name} is larger than such a file can be",
            where={"file": path},
            expected=f"at most {max_bytes:,} bytes",
        )
    return data


def _tracked(checkpoint: Path) -> str:
    tracker = checkpoint / TRACKER
    if not tracker.is_file():
        advice = f"give the folder that holds {TRACKER}, or an iter_* folder in it"
        if (checkpoint / CONFIG).is_file():
            advice = f"this is a Hugging Face folder, as --reference takes it (it has {CONFIG}); {advice}"
        elif iterations(checkpoint):
            advice = "choose one of its iter_* folders with --iteration"
        raise CheckpointError(
            f"the folder is not a Megatron checkpoint: it has neither {TRACKER} nor .metadata",
            where={"folder": checkpoint},
            advice=advice,
        )
    text = read(tracker, 0, _MAX_TRACKER_BYTES).decode(errors="replace").strip()
    if text == "release":
        return text
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise CheckpointError(
            "the tracker file names no iteration",
            where={"file": tracker},
            expected="a number, or release",
            got=repr(text[:80]),
            advice="choose one with --iteration",
        )
    return f"iter_{int(text):07d}"
