"""How a finished staging folder becomes the target, and what a target may be.

A folder of its own appears by one rename; an older one is swapped out in one step and removed. Beside other
files, names are changed one by one and the index comes last: without it the folder holds no model.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path

from pp_export.core import file_names, weight_index
from pp_export.core.errors import TargetError
from pp_export.disk.files import attempt, read_umask, remove_folder, sync_folder
from pp_export.disk.replaceable import check_replaceable

_RENAME_EXCHANGE, _AT_FDCWD = 2, -100
_OF_ALL = (file_names.INDEX, file_names.MANIFEST, file_names.SUMS)


def check_target(
    target: Path, *, overwrite: bool, beside: bool = False, sources: Iterable[Path] = ()
) -> None:
    """Raise TargetError unless `target` may be made, or replaced with `overwrite`.

    `beside` leaves what else it holds alone, so it only must not hold weights. Otherwise only an empty folder
    or a model's (`check_replaceable`) may be replaced, and none that holds one of `sources`.
    """
    if not target.parent.is_dir():
        raise TargetError("the output's parent folder does not exist", where={"folder": target.parent})
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise TargetError("the output exists and is not a folder", where={"output": target})
    if not target.exists():
        return
    if os.path.ismount(target):
        raise TargetError(
            "the output is a mount point, which can't be renamed",
            where={"output": target},
            advice="choose a folder below it",
        )
    if not overwrite and not (beside and not holds_weights(target)):
        raise TargetError(
            "the output exists",
            where={"output": target},
            advice="choose another --output, or pass --overwrite to replace it once the new one is complete",
        )
    _check_apart(target, beside, sources)
    if not beside:
        check_replaceable(target)


def _check_apart(target: Path, beside: bool, sources: Iterable[Path]) -> None:
    real = target.resolve()
    for source in (source.resolve() for source in sources):
        if real == source or (not beside and real in source.parents):
            raise TargetError(
                "the output is, or contains, what the export reads or works in",
                where={"output": target},
                got=source,
                advice="choose another --output",
            )


def holds_weights(folder: Path) -> bool:
    """Whether the weights of an earlier export, of anybody, lie in `folder`."""
    return any(path.name == file_names.INDEX or _is_of_a_model(path.name) for path in folder.iterdir())


def publish(staging: Path, target: Path) -> list[str]:
    """Give the finished `staging` folder its final name; an old folder is swapped out, then removed.

    Returns what could not be done after that, a sentence each: the export stands by then.
    """
    sync_folder(staging)
    old = target.stat() if target.exists() else None
    mode = 0o777 & ~read_umask() if old is None else stat.S_IMODE(old.st_mode)
    if old is not None:
        with suppress(OSError):
            os.chown(staging, old.st_uid, old.st_gid)
    attempt("set mode", staging, lambda: os.chmod(staging, mode))
    if old is None:
        attempt("rename", target, lambda: os.rename(staging, target))
        return _afterwards(partial(sync_folder, target.parent))
    check_replaceable(target)  # somebody may have put something in it meanwhile
    replaced = attempt("swap", target, lambda: _exchange(staging, target))
    return _afterwards(partial(sync_folder, target.parent), partial(remove_folder, replaced))


def publish_beside(staging: Path, target: Path) -> list[str]:
    """Move the files of `staging` into `target`, beside what else it holds; the index last.

    Weights of an earlier export are replaced: its index goes first, and its shards that have no successor go
    before the new index comes, since loaders prefer an old single file to an index. Fails only while the
    target has no index. Returns what could not be done afterwards.
    """
    if not target.exists():
        return publish(staging, target)
    sync_folder(staging)
    stale = _weights_of(target)
    for path in (target / name for name in _OF_ALL):
        attempt("remove", path, partial(path.unlink, missing_ok=True))
    found = {path.relative_to(staging).as_posix() for path in staging.rglob("*") if path.is_file()}
    names = sorted(found.difference(_OF_ALL))
    for name in names:
        path = target / name
        attempt("make folder", path.parent, partial(path.parent.mkdir, parents=True, exist_ok=True))
        attempt("rename", path, partial(os.replace, staging / name, path))
    for path in (target / name for name in sorted(stale.difference(names))):
        attempt("remove", path, partial(path.unlink, missing_ok=True))
    sync_folder(target)
    for name in sorted(found.intersection(_OF_ALL)):  # the index is the last of them
        attempt("rename", target / name, partial(os.replace, staging / name, target / name))
    return _afterwards(partial(sync_folder, target), partial(remove_folder, staging))


def _weights_of(folder: Path) -> set[str]:
    """The shards that an earlier export left: those that its index names, and those of such a name."""
    names = {path.name for path in folder.iterdir() if _is_of_a_model(path.name)}
    with suppress(OSError, ValueError), (folder / file_names.INDEX).open("rb") as file:
        index = weight_index.parse(file.read(weight_index.MAX_BYTES + 1))
        names.update((index.weight_map or {}).values())
    return {name for name in names if (folder / name).is_file()}


def _is_of_a_model(name: str) -> bool:
    return name == file_names.SINGLE_WEIGHTS or file_names.number_of(name) is not None


def _afterwards(*steps: Callable[[], object]) -> list[str]:
    """Do what remains when the target has its name; failures are sentences now."""
    notes = []
    for step in steps:
        try:
            step()
        except TargetError as error:
            notes.append(f"the export is published; afterwards: {error.what}: {error.where.get('file')}")
    return notes


def _exchange(staging: Path, target: Path) -> Path:
    """Swap two folders in one step, or in two renames where the filesystem has no such call. Returns where
    the old one is now.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "renameat2"):
        arguments = (_AT_FDCWD, os.fsencode(staging), _AT_FDCWD, os.fsencode(target), _RENAME_EXCHANGE)
        if libc.renameat2(*arguments) == 0:
            return staging
        code = ctypes.get_errno()
        if code not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise OSError(code, os.strerror(code))
    aside = staging.with_name(staging.name + "-old")
    os.rename(target, aside)
    try:
        os.rename(staging, target)
    except OSError:
        os.rename(aside, target)
        raise
    return aside
