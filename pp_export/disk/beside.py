"""How an export comes into a folder that holds other files too, and how that is undone.

Many names can't change in one step. So what was there is kept in the staging folder until the new index has
its name, which is the last step and decides: before it, all goes back; after it, all is new. A journal in the
staging folder says what is to be undone where a run was killed in between; it and what is kept are on disk
before anything new has a name.

Whoever reads the folder meanwhile finds the old index with all of its files, or no index, or the new one with
all of its files.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path, PurePosixPath

from pp_export.core import file_names, weight_index
from pp_export.core.errors import TargetError
from pp_export.disk import calls
from pp_export.disk.calls import attempt, do, failed, look, quietly
from pp_export.disk.files import read_file, remove_file, write_file
from pp_export.disk.folders import (
    JOURNAL,
    discarded,
    holds_older_files,
    is_discarded,
    make_folders,
    record_beside,
    remove_folder,
    sync_folder,
    sync_folders,
)
from pp_export.disk.publish import afterwards, is_of_a_model, publish

_KEPT = ".pp_export-kept"
_OF_ALL = (file_names.INDEX, file_names.MANIFEST, file_names.SUMS)
_MAX_JOURNAL_BYTES = 1 << 28


@contextmanager
def alone_in(target: Path) -> Iterator[None]:
    """No other run changes names in `target` meanwhile, where the filesystem has locks; one that was
    killed holds none. Raises TargetError where another run is at it.
    """
    try:
        descriptor = do(os.open, target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield
        return
    except OSError as error:
        raise failed("open", target, error) from error
    try:
        try:
            do(fcntl.flock, descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TargetError(
                "another export is being published there at this moment",
                where={"output": target},
                advice="of two exports to one output only the first is published; choose another --output",
            ) from error
        except OSError:
            """There are no locks here."""
        yield
    finally:
        quietly(os.close, descriptor)


def publish_beside(staging: Path, target: Path) -> list[str]:
    """Move the files of `staging` into `target`, beside what else it holds; the index last.

    Weights of an earlier export are replaced, those without a successor too, since loaders prefer an old
    single file to an index. Raises TargetError only where the target is again what it was, or says in its
    findings that it isn't. Returns what could not be done afterwards.
    """
    if look(target) is None:
        return publish(staging, target)
    found = attempt("list", staging, _files_of, staging)
    last = sorted(found.intersection(_OF_ALL))  # the index is the last of them
    names = sorted(found.difference(_OF_ALL))
    gone = [name for name in _OF_ALL if _is_file(target / name)] + sorted(_weights_of(target))
    replaced = [name for name in names if name not in gone and _is_file(target / name)]
    try:
        _write_journal(staging, target, {"new": [*names, *last], "old": [*gone, *replaced]})
    except BaseException:
        quietly(os.unlink, staging / JOURNAL)  # nothing has moved; it may be there though its rename failed
        raise
    try:
        _keep(staging, target, gone, replaced)
        _move(staging, target, names, {*gone, *replaced})
        _move(staging, target, last, gone, durably=False)
    except BaseException as error:
        if not _undo_after(error, staging, target):
            raise
    return afterwards(
        partial(sync_folder, target),
        partial(remove_folder, staging),
        partial(remove_file, record_beside(staging)),
    )


def recover(staging: Path, target: Path) -> Path:
    """Undo what a run that was killed has begun to publish from `staging`, which holds older files, into
    `target`. The folder loses its name first: should the run still live, whatever it does next fails. Returns
    its new name.
    """
    nameless = staging
    if not is_discarded(staging):
        nameless = discarded(staging)
        attempt("rename", staging, os.rename, staging, nameless)
    _undo(nameless, target)
    return nameless


def _write_journal(staging: Path, target: Path, lists: dict[str, list[str]]) -> None:
    attempt("make folder", staging / _KEPT, os.mkdir, staging / _KEPT, 0o700)
    for name in lists["old"]:
        make_folders((staging / _KEPT / name).parent)
    write_file(staging / JOURNAL, [json.dumps(lists).encode()])
    try:
        sync_folders(staging)
        sync_folder(target.parent)
    except BaseException:
        quietly(os.unlink, staging / JOURNAL)  # nothing is kept yet, so nothing is to be undone
        raise


def _keep(staging: Path, target: Path, gone: Iterable[str], replaced: Iterable[str]) -> None:
    """Keep what is replaced, under a second name that is on disk before the first goes. Then weights and
    index lose theirs, the index first; other files have it until the successor does.
    """
    for name in (*gone, *replaced):
        path, kept = target / name, staging / _KEPT / name
        try:
            do(os.link, path, kept, follow_symlinks=False)
        except OSError:  # a filesystem without second names
            attempt("rename", path, os.rename, path, kept)
    sync_folders(staging / _KEPT)
    for name in gone:
        remove_file(target / name)
        if name == file_names.INDEX:
            sync_folder(target)
    sync_folder(target)


def _move(
    staging: Path, target: Path, names: Iterable[str], expected: Iterable[str], *, durably: bool = True
) -> None:
    """Give files of `staging` their names in `target`; only those that are `expected` may be replaced."""
    expected, touched = set(expected), {target}
    for name in names:
        path = target / name
        make_folders(path.parent)
        touched.add(path.parent)
        if name not in expected and look(path, follow=False) is not None:
            raise TargetError("another program has put a file there meanwhile", where={"file": path})
        attempt("rename", path, os.rename, staging / name, path)
    for folder in sorted(touched, reverse=True) if durably else ():
        sync_folder(folder)


def _undo_after(error: BaseException, staging: Path, target: Path) -> bool:
    """Undo a publication that failed, unless its last step was done all the same; whether it was. An undoing
    that fails is told in the findings of `error`.
    """
    try:
        if not holds_older_files(staging):
            return True
        _undo(staging, target)
    except TargetError as another:
        if isinstance(error, TargetError):
            error.findings += (
                "what was there could not be put back, the next export to it will see to that: "
                f"{another.what}: {another.where.get('file')}; it is in {staging / _KEPT}",
            )
    return False


def _undo(staging: Path, target: Path) -> None:
    """Put back what was there; may be repeated after it was interrupted anywhere."""
    try:
        lists = json.loads(read_file(staging / JOURNAL, _MAX_JOURNAL_BYTES))
        new, old = [[_checked(name) for name in lists[key]] for key in ("new", "old")]
    except (ValueError, KeyError, TypeError) as error:
        what = "the journal of a publication can't be read"
        raise TargetError(what, where={"file": staging / JOURNAL}) from error
    for name in new:
        if name not in old and _has_moved(staging / name, target / name):
            remove_file(target / name)
            quietly(os.rmdir, (target / name).parent)  # only if it is empty
    for name in reversed(old):  # the index is the first of them
        if name == file_names.INDEX:
            sync_folder(target)
        try:
            do(os.rename, staging / _KEPT / name, target / name)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise failed("put back", target / name, error) from error
    for folder in {target, *(folder for name in {*new, *old} if (folder := (target / name).parent).is_dir())}:
        sync_folder(folder)
    remove_file(staging / JOURNAL)
    sync_folder(staging)


def _files_of(folder: Path) -> set[str]:
    """The files in a staging folder, by relative path."""

    def stop(error: OSError) -> None:
        raise error

    walked = os.walk(folder, onerror=stop)
    return {(Path(at) / name).relative_to(folder).as_posix() for at, _, names in walked for name in names}


def _has_moved(source: Path, path: Path) -> bool:
    """Whether a file has its new name; a power cut may leave it both. Else what is there is somebody's."""
    before, now = look(source, follow=False), look(path, follow=False)
    return before is None or (now is not None and os.path.samestat(before, now))


def _checked(name: object) -> str:
    """A name of a journal, which lies in a folder that others may write into."""
    if not isinstance(name, str) or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise ValueError("no name below a folder")
    return name


def _is_file(path: Path) -> bool:
    """Whether a file lies at `path`, or a link; a folder there is in the way."""
    found = look(path, follow=False)
    if found is not None and stat.S_ISDIR(found.st_mode):
        raise TargetError("a folder lies where a file is to be", where={"folder": path})
    return found is not None


def _weights_of(folder: Path) -> set[str]:
    """The shards that an earlier export left: those that its index names, and those of such a name."""
    names = {name for name in calls.names_in(folder) if is_of_a_model(name)}
    if look(folder / file_names.INDEX) is not None:
        image = read_file(folder / file_names.INDEX, weight_index.MAX_BYTES + 1)
        with suppress(ValueError):
            names.update((weight_index.parse(image).weight_map or {}).values())
    return {name for name in names if (folder / name).is_file()}
