"""A staging folder that outlives its run: set aside for `--resume`, and taken over by the run that resumes.

Each run has a staging folder of its own, under its own name. Taking one over is one rename, so of several
runs one gets it, and whoever still writes there by the old name fails.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from pp_export.disk.calls import attempt
from pp_export.disk.files import remove_file
from pp_export.disk.folders import (
    record_beside,
    remove_folder,
    resumable,
    staging_of,
    staging_path,
    sync_folder,
)


def earlier_staging(target: Path) -> list[Path]:
    """The staging folders beside `target` that its runs have left, or are at work in; the newest first."""
    prefix = staging_path(target, "").name
    entries = attempt("list", target.parent, lambda: list(os.scandir(target.parent)))
    found = [
        entry for entry in entries if entry.name.startswith(prefix) and entry.is_dir(follow_symlinks=False)
    ]
    found.sort(key=lambda entry: entry.stat(follow_symlinks=False).st_mtime_ns, reverse=True)
    return [Path(entry.path) for entry in found]


def set_aside(staging: Path) -> Path:
    """Keep the staging folder of a run that failed, where nobody of this run finds it any more."""
    aside = resumable(staging)
    attempt("rename", staging, os.rename, staging, aside)
    sync_folder(staging.parent)
    return aside


def adopt(earlier: Path, staging: Path) -> None:
    """Make the folder of an `earlier` run the `staging` folder of this one."""
    attempt("rename", earlier, os.rename, earlier, staging)
    sync_folder(staging.parent)
    remove_file(record_beside(staging_of(earlier)))


def remove_others(folder: Path, keep: Collection[str]) -> None:
    """Remove everything in `folder` but the regular files that `keep` names, relative to it, and their
    folders.
    """
    kept_folders = {parent.as_posix() for name in keep for parent in Path(name).parents}
    for root, folders, names in os.walk(folder):
        inside = Path(root)
        for name in list(folders):
            path = inside / name
            if path.relative_to(folder).as_posix() not in kept_folders or path.is_symlink():
                folders.remove(name)
                remove_folder(path)
        for name in names:
            path = inside / name
            if path.relative_to(folder).as_posix() not in keep or path.is_symlink() or not path.is_file():
                remove_file(path)
