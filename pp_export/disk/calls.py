"""The one place where the operating system is asked to make, change, name, sync or remove a file, and to look
at what that depends on.

Everything goes through `do`, by name of the system's own function: so tests can count the calls, make any of
them fail or stop, and keep a log from which they rebuild what a power cut could leave.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from pp_export.core.errors import TargetError

P = ParamSpec("P")
T = TypeVar("T")

_RENAME_EXCHANGE, _AT_FDCWD = 2, -100
_ABSENT = (errno.ENOENT, errno.ENOTDIR)
NO_SUCH_CALL = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)
"""What a filesystem, or an old kernel, says to a call that it doesn't have."""
ADVICE = {
    errno.ENOSPC: "free space on the target's filesystem (check quotas, inodes and, on Lustre, `lfs df` too)",
    errno.EDQUOT: "the user's or project's disk quota is used up",
    errno.EFBIG: "a file size limit (ulimit -f) is below the shard size; see --max-shard-size",
    errno.EACCES: "the user who runs the export may not write there",
    errno.EROFS: "the target's filesystem is mounted read-only",
    errno.ENAMETOOLONG: "choose a shorter --output",
    errno.ESTALE: "the target's filesystem was taken away meanwhile, or its server has forgotten it",
}


def _call(function: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
    return function(*arguments, **named)


through: Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any] = _call
"""What every call goes through; tests put something of their own here."""


def do(function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """What the system's `function` returns."""
    result: T = through(function, arguments, named)
    return result


def attempt(operation: str, path: Path, function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """`do`; an OSError becomes a TargetError that names the operation and the path."""
    try:
        return do(function, *arguments, **named)
    except OSError as error:
        raise failed(operation, path, error) from error


def quietly(function: Callable[P, object], *arguments: P.args, **named: P.kwargs) -> None:
    """`do`, where a failure changes nothing that matters."""
    with suppress(OSError):
        do(function, *arguments, **named)


def failed(operation: str, path: Path, error: OSError) -> TargetError:
    """What a user is told of a call that failed."""
    return TargetError(
        f"{operation} failed: {os.strerror(error.errno) if error.errno else error}",
        where={"operation": operation, "file": path},
        advice=ADVICE.get(error.errno or 0),
    )


def look(path: Path, *, follow: bool = True) -> os.stat_result | None:
    """What lies at `path`, or None. Whatever else keeps from looking (a parent that may not be searched, a
    filesystem that went away) is a TargetError.
    """
    try:
        return do(os.stat, path, follow_symlinks=follow)
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise failed("look at", path, error) from error


def is_folder(path: Path, *, follow: bool = True) -> bool:
    """Whether a folder lies at `path`; raises as `look` does."""
    found = look(path, follow=follow)
    return found is not None and stat.S_ISDIR(found.st_mode)


def names_in(folder: Path) -> list[str]:
    """The names in a folder."""
    return attempt("list", folder, os.listdir, folder)


def exchange(one: Path, other: Path) -> None:
    """Let two names change places in one step. OSError of `NO_SUCH_CALL` where there is no such call."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    arguments = (_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    if libc.renameat2(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
