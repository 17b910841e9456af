"""The folders that a run makes and removes: their names, making them durable, and removing them."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

from pp_export.core.errors import TargetError
from pp_export.core.file_names import INDEX
from pp_export.disk.calls import ADVICE, attempt, do, failed, is_folder, look

JOURNAL = ".pp_export-journal.json"
"""In a staging folder: what is to be undone of its publication beside other files (`disk.beside`)."""
_DEFAULT_NAME_BYTES, _DEFAULT_PATH_BYTES = 255, 4096
_INSIDE_BYTES = 100  # the longest path inside a staging folder
_OF_RUN = ".pp_export-"
_OLD, _DISCARDED, _RESUMABLE, _RECORD, _PROBE = "-old", "-bin", "-kept", "-own", "-try"


def staging_path(target: Path, run_id: str) -> Path:
    """Where run `run_id` builds the folder: hidden, beside the target, so on the same filesystem."""
    return target.with_name(f".{target.name}{_OF_RUN}{run_id}")


def target_of(staging: Path) -> Path:
    """The target beside which a staging folder lies, whatever has become of its name."""
    return staging.with_name(staging.name[1:].rpartition(_OF_RUN)[0])


def set_aside(staging: Path) -> Path:
    """Where an older target lies while the new one takes its name in two steps."""
    return staging.with_name(staging.name + _OLD)


def discarded(staging: Path) -> Path:
    """The name of a staging folder that is being removed."""
    return staging.with_name(staging.name + _DISCARDED)


def resumable(staging: Path) -> Path:
    """The name of a staging folder that outlives its run, for one that resumes."""
    return staging.with_name(staging.name + _RESUMABLE)


def probe_of(staging: Path) -> Path:
    """The folder in which ranks try what they may do beside the target."""
    return staging.with_name(staging.name + _PROBE)


def staging_of(path: Path) -> Path:
    """The name that a staging folder had at first."""
    name, _, run_id = path.name.rpartition(_OF_RUN)
    return path.with_name(f"{name}{_OF_RUN}{run_id.partition('-')[0]}")


def record_beside(staging: Path) -> Path:
    """Where the record of the staging folder's owner lies (`disk.owner`): the folder may be published any
    moment, and holds nothing that is not to be.
    """
    return staging.with_name(staging.name + _RECORD)


def is_discarded(folder: Path) -> bool:
    """Whether a staging folder has the name of one that is being removed."""
    return folder.name.endswith(_DISCARDED)


def holds_older_files(staging: Path) -> bool:
    """Whether files of an older export are kept in a staging folder, that belong into its target until the
    new index, which goes last, is there.
    """
    if look(staging / JOURNAL) is None:
        return False
    return look(staging / INDEX) is not None or look(target_of(staging) / INDEX) is None


def check_names(staging: Path) -> None:
    """Raise TargetError where the target's name, or its path, is too long for the names that a run needs
    beside it and in it.
    """
    most = _limit(staging.parent, "PC_NAME_MAX", _DEFAULT_NAME_BYTES)
    longest = len(os.fsencode(staging.name)) + len(_RESUMABLE)
    what = "name"
    if longest <= most:
        most = _limit(staging.parent, "PC_PATH_MAX", _DEFAULT_PATH_BYTES)
        longest, what = len(os.fsencode(staging)) + _INSIDE_BYTES, "path"
    if longest > most:
        target = target_of(staging)
        got = len(os.fsencode(target.name if what == "name" else target))
        raise TargetError(
            f"the output's {what} is too long: the export is made beside it, under a longer one",
            where={"output": target},
            expected=f"a {what} of at most {got - (longest - most)} bytes",
            got=f"{got} bytes",
            advice="choose a shorter --output, and rename the folder afterwards",
        )


def _limit(folder: Path, name: str, default: int) -> int:
    try:
        return os.pathconf(folder, name)
    except (OSError, ValueError):
        return default


def make_parents(target: Path) -> None:
    """Make the folders above `target` that are missing; any rank may."""
    make_folders(target.parent)


def make_folders(path: Path) -> None:
    """Make a folder, and those above it, where they are missing."""
    if is_folder(path):
        return
    if path.parent != path:
        make_folders(path.parent)
    try:
        do(os.mkdir, path)
    except FileExistsError as error:
        if not is_folder(path):  # else another process was quicker
            raise failed("make folder", path, error) from error
    except OSError as error:
        raise failed("make folder", path, error) from error


def check_space(target: Path, num_bytes: int) -> None:
    """Raise TargetError where the filesystem of `target` says that it has fewer than `num_bytes` free."""
    free = attempt("look at", target.parent, shutil.disk_usage, target.parent).free
    if free < num_bytes:
        raise TargetError(
            "the target's filesystem has too little space",
            where={"folder": target.parent},
            expected=f"{num_bytes:,} bytes",
            got=f"{free:,} bytes free",
            advice=ADVICE[errno.ENOSPC],
        )


def make_folder(path: Path) -> None:
    """Make a folder that must not exist yet, private until it is published."""
    attempt("make folder", path, os.mkdir, path, 0o700)


def remove_folder(path: Path) -> None:
    """Remove a folder of this run with everything in it; absent is fine. Links are removed, not followed.

    Everything that can go goes; the first failure is raised then.
    """
    found = look(path, follow=False)
    if found is None:
        return
    if not stat.S_ISDIR(found.st_mode):
        raise failed("remove", path, NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)))
    failures: list[OSError] = []

    def remove(function: Callable[..., object], name: str, **at: int) -> None:
        try:
            do(function, name, **at)
        except FileNotFoundError:
            return
        except OSError as error:
            failures.append(error)

    for inside, folders, names, descriptor in os.fwalk(path, topdown=False, onerror=failures.append):
        for name in folders:  # links to folders are among them
            is_link = os.path.islink(os.path.join(inside, name))
            remove(os.unlink if is_link else os.rmdir, name, dir_fd=descriptor)
        for name in names:
            remove(os.unlink, name, dir_fd=descriptor)
    remove(os.rmdir, os.fspath(path))
    if failures:
        raise failed("remove", path, failures[0]) from failures[0]


def discard_folder(path: Path) -> None:
    """Remove the staging folder of this run, that other processes may still write into, or even be about to
    publish, and its owner's record.

    It loses its name first, so that whatever they do by that name fails. Raises TargetError where it can't be
    removed, or may not since files of an older export are kept in it; the record stays then.
    """
    if len(os.fsencode(path.name)) + len(_DISCARDED) > _DEFAULT_NAME_BYTES:
        return  # `check_names` has refused it
    if look(path, follow=False) is not None:
        nameless = discarded(path)
        attempt("rename", path, os.rename, path, nameless)
        if holds_older_files(nameless):
            raise TargetError("files of the older export are still kept in it", where={"folder": nameless})
        remove_folder(nameless)
    remove_folder(probe_of(path))
    try:
        do(os.unlink, record_beside(path))
    except FileNotFoundError:
        return
    except OSError as error:
        raise failed("remove", record_beside(path), error) from error


def sync_folder(path: Path) -> None:
    """Make the names in `path` durable."""
    descriptor = attempt("open", path, os.open, path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        attempt("fsync folder", path, os.fsync, descriptor)
    finally:
        attempt("close folder", path, os.close, descriptor)


def sync_folders(path: Path) -> None:
    """Make all names below `path` durable, inner folders first."""
    for inside, _, _ in os.walk(path, topdown=False):
        sync_folder(Path(inside))
