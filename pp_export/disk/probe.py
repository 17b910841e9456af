"""Whether an export could be made in a place: tried there, since neither modes nor mounts say it all."""

from __future__ import annotations

import os
from pathlib import Path

from pp_export.core.errors import TargetError
from pp_export.disk import files
from pp_export.disk.calls import attempt
from pp_export.disk.folders import make_folder

_TOKEN, _RENAMED, _NEW = "token", "renamed", "new"


def make_probe(folder: Path, token: bytes) -> None:
    """Make `folder`, a file in it and a folder that is renamed, as an export does; called on rank 0, which
    removes it. Raises TargetError where that can't be done.
    """
    attempt("make a folder", folder.parent, os.mkdir, folder, 0o700)
    make_folder(folder / _NEW)
    attempt("rename", folder / _RENAMED, os.rename, folder / _NEW, folder / _RENAMED)
    files.write_file(folder / _TOKEN, [token])


def check_probe(folder: Path, token: bytes, name: str) -> None:
    """Read the `token` that rank 0 has put into `folder`, and write and rename a file of this rank's own
    `name` there. Raises TargetError where `folder` isn't seen here, or can't be written into.
    """
    try:
        found = (folder / _TOKEN).read_bytes()
    except OSError:
        found = None
    if found != token:
        raise TargetError(
            "this rank does not see the folder that rank 0 made: the ranks do not share a filesystem",
            where={"folder": folder},
            advice="put --output on a filesystem that all nodes mount",
        )
    files.write_file(folder / name, [token])


def check_inodes(folder: Path, num_files: int) -> None:
    """Raise TargetError where the filesystem of `folder` says that it can take fewer than `num_files` more
    files.
    """
    found = attempt("look for free inodes", folder, os.statvfs, folder)
    if found.f_files and found.f_favail < num_files:
        raise TargetError(
            "the target's filesystem has too few free inodes",
            where={"folder": folder},
            expected=f"{num_files:,} files and folders",
            got=f"{found.f_favail:,} inodes free",
            advice="remove files on the target's filesystem, or ask for a larger quota of them",
        )
