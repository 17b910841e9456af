"""How a finished staging folder becomes the target, and what a target may be.

A folder of its own appears by one rename; an older one is swapped out in one step and removed. How files come
into a folder that holds others too is told in `disk.beside`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Collection, Iterable
from functools import partial
from pathlib import Path

from pp_export.core import file_names
from pp_export.core.errors import TargetError
from pp_export.disk import calls, owner
from pp_export.disk.calls import attempt, do, failed, look, quietly
from pp_export.disk.files import read_umask, remove_file
from pp_export.disk.folders import record_beside, remove_folder, set_aside, sync_folder, sync_folders
from pp_export.disk.replaceable import check_replaceable


def check_target(
    target: Path, *, overwrite: bool, beside: bool = False, sources: Iterable[Path] = ()
) -> None:
    """Raise TargetError unless `target` may be made, or replaced with `overwrite`.

    `beside` leaves what else it holds alone, so it only must not hold weights. Otherwise only an empty folder
    or a model's (`check_replaceable`) may be replaced, and none that holds one of `sources`.
    """
    if not calls.is_folder(target.parent):
        raise TargetError(
            "the output's parent folder does not exist",
            where={"folder": target.parent},
            advice="--parents makes it, or look for a misspelt name",
        )
    found = look(target, follow=False)
    if found is None:
        return
    if not stat.S_ISDIR(found.st_mode):
        raise TargetError(
            "the output exists and is not a folder",
            where={"output": target},
            advice="give another name: an export is a folder",
        )
    if attempt("look at", target, os.path.ismount, target):
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
    real = attempt("look at", target, target.resolve)
    for source in (attempt("look at", source, source.resolve) for source in sources):
        if real == source or (not beside and real in source.parents):
            raise TargetError(
                "the output is, or contains, a folder that the export reads or works in",
                where={"output": target},
                got=source,
                advice="choose another --output",
            )


def holds_weights(folder: Path) -> bool:
    """Whether the weights of an earlier export, of anybody, lie in `folder`."""
    return any(name == file_names.INDEX or is_of_a_model(name) for name in calls.names_in(folder))


def is_of_a_model(name: str) -> bool:
    """Whether a file is weights by its name."""
    return name == file_names.SINGLE_WEIGHTS or file_names.number_of(name) is not None


def mark_of(target: Path, *, beside: bool) -> list[str]:
    """What `target` is now, by which is known later whether another export was published there; nothing where
    it is absent. Beside other files it is the index.
    """
    return sorted(_mark(look(target / file_names.INDEX if beside else target, follow=False)))


def _mark(found: os.stat_result | None) -> set[str]:
    """Some filesystems give a folder another number each time, and anybody may put a file into it: so it is
    another one if its number and its time have both changed.
    """
    return set() if found is None else {f"number {found.st_ino}", f"changed {found.st_mtime_ns}"}


def check_publishable(staging: Path, target: Path, run_id: str, *, beside: bool) -> list[str]:
    """The marks of the target when run `run_id` began. Raises TargetError unless the run still owns its
    `staging` folder, and the target is what it was then.
    """
    before = owner.check_own(staging, run_id).replaces
    now = mark_of(target, beside=beside)
    if (before or now) and not set(before) & set(now):
        raise TargetError(
            "the output is not what it was when the export began: another run published there, or removed it",
            where={"output": target},
            expected="what was there" if before else "nothing there",
            got="the export of another run" if now else "nothing there",
            advice="of two exports to one output only the first is published; choose another --output",
        )
    return before


def publish(staging: Path, target: Path, expected: Collection[str] | None = None) -> list[str]:
    """Give the finished `staging` folder its final name; an old folder is swapped out, then removed. It must
    have one of the `expected` marks, which `check_publishable` gave, and must not be there if there are none;
    None means whatever is there.

    Returns what could not be done after that, a sentence each: the export stands by then.
    """
    old = look(target)
    mode = 0o777 & ~read_umask() if old is None else stat.S_IMODE(old.st_mode)
    if old is not None:
        if expected is not None and not expected:
            raise _published_by_another(target)
        quietly(os.chown, staging, old.st_uid, old.st_gid)
    attempt("set mode", staging, os.chmod, staging, mode)
    sync_folders(staging)
    steps: list[Callable[[], object]] = [partial(sync_folder, target.parent)]
    if old is None:
        _rename(staging, target, look(staging))
    else:
        check_replaceable(target)  # somebody may have put something in it meanwhile
        steps.append(partial(remove_folder, _swap(staging, target, old, expected or _mark(old))))
    return afterwards(*steps, partial(remove_file, record_beside(staging)))


def afterwards(*steps: Callable[[], object]) -> list[str]:
    """Do what remains when the target has its name; a failure is a sentence now, and what comes behind it is
    left.
    """
    for step in steps:
        try:
            step()
        except TargetError as error:
            return [f"the export is published; afterwards: {error.what}: {error.where.get('file')}"]
    return []


def _rename(source: Path, target: Path, own: os.stat_result | None) -> None:
    """Rename a folder, that is its `own`. A server may have done what its client calls failed."""
    try:
        do(os.rename, source, target)
    except OSError as error:
        if not _is_at(target, own):
            raise failed("rename", target, error) from error


def _swap(staging: Path, target: Path, old: os.stat_result, expected: Collection[str]) -> Path:
    """Swap two folders in one step, or in two renames where the filesystem has no such call. Returns where
    the `old` one is now, which is to have one of the `expected` marks.
    """
    new = look(staging)
    try:
        do(calls.exchange, staging, target)
        return _checked(staging, target, expected)
    except OSError as error:
        if _is_at(target, new):
            return staging
        if error.errno not in calls.NO_SUCH_CALL:
            raise failed("swap", target, error) from error
    aside = set_aside(staging)
    _rename(target, aside, old)
    try:
        _rename(staging, target, new)
    except BaseException:
        _rename(aside, target, old)
        raise
    return aside


def _checked(staging: Path, target: Path, expected: Collection[str]) -> Path:
    """What was swapped out is what was to be; else it is put back, since it is another run's."""
    try:
        swapped = _mark(do(os.lstat, staging))
    except OSError:
        return staging
    if not swapped & set(expected):
        attempt("swap", target, calls.exchange, staging, target)
        raise _published_by_another(target)
    return staging


def _published_by_another(target: Path) -> TargetError:
    return TargetError(
        "another run published its export at the same moment",
        where={"output": target},
        advice="of two exports to one output only the first is published; choose another --output",
    )


def _is_at(path: Path, found: os.stat_result | None) -> bool:
    """Whether a folder that was `found` earlier lies at `path`."""
    try:
        now = os.lstat(path)
    except OSError:
        return False
    return found is not None and (now.st_dev, now.st_ino) == (found.st_dev, found.st_ino)
