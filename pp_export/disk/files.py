"""Single files. One appears under its final name only when all of its bytes are on disk."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import ParamSpec, TypeVar

from pp_export.core.digest import STEP_BYTES
from pp_export.core.errors import TargetError
from pp_export.disk.calls import attempt, do, failed, quietly
from pp_export.disk.folders import make_folders

Buffer = bytes | memoryview
P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F", bound="OpenFile")

DIRECT_STEP_BYTES = 16 << 20
FILE_MODE, SCRIPT_MODE = 0o666, 0o777
_DIRECT_BLOCK_BYTES = 4096


def read_umask() -> int:
    """The process's umask, read without a moment in which it is another."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("Umask:"):
            return int(line.split()[1], 8)
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


class OpenFile(ABC):
    """Bytes [begin, begin + num_bytes) of a file on its way to `path`, written under the name `temporary`.

    All of them are reserved at once, so that a full disk is met before the first byte, not after the last.
    `direct` is for large page-aligned data: it goes to the disk without a copy in the page cache, where the
    filesystem allows.
    """

    def __init__(
        self, path: Path, temporary: Path, flags: int, begin: int, num_bytes: int, *, direct: bool
    ) -> None:
        self.path = path
        self._temporary = temporary
        self._begin, self._num_bytes, self._written = begin, num_bytes, 0
        flags |= os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = attempt("create", path, os.open, temporary, flags, 0o600)
        self._direct = direct and self._set_direct(True)
        if num_bytes:
            self._guarded("reserve space", self._reserve)
        if begin:
            self._guard("seek", os.lseek, self._fd, begin, os.SEEK_SET)

    def __enter__(self: F) -> F:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if kind is not None:
            self.abandon()

    @abstractmethod
    def commit(self) -> None:
        """Make the bytes durable, and the file what it is to be."""

    def write(self, data: Buffer) -> None:
        """Append `data`."""
        view = memoryview(data).cast("B")
        while len(view):
            done = self._guarded("write", self._write_some, view)
            self._written += done
            view = view[done:]

    def _write_some(self, view: memoryview) -> int:
        if self._direct:
            whole = len(view) // _DIRECT_BLOCK_BYTES * _DIRECT_BLOCK_BYTES
            try:
                if whole:
                    return do(os.write, self._fd, view[: min(whole, DIRECT_STEP_BYTES)])
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
            # The last bytes, or a filesystem that wants other alignment.
            self._direct = self._set_direct(False)
        return do(os.write, self._fd, view[:STEP_BYTES])

    def _set_direct(self, on: bool) -> bool:
        """Switch O_DIRECT; whether it is on."""
        flags = fcntl.fcntl(self._fd, fcntl.F_GETFL) & ~os.O_DIRECT
        try:
            do(fcntl.fcntl, self._fd, fcntl.F_SETFL, flags | (os.O_DIRECT if on else 0))
        except OSError:
            return False
        return on

    def _check_complete(self) -> None:
        if self._written != self._num_bytes:
            self.abandon()
            raise TargetError(
                "a file got another number of bytes than planned",
                where={"file": self.path},
                expected=self._num_bytes,
                got=self._written,
            )

    def _close_durably(self) -> None:
        self._guard("fsync", os.fsync, self._fd)
        descriptor, self._fd = self._fd, -1
        self._guard("close", os.close, descriptor)

    def abandon(self) -> None:
        """Close the file; never raises."""
        descriptor, self._fd = self._fd, -1
        if descriptor >= 0:
            quietly(os.close, descriptor)

    def _reserve(self) -> None:
        try:
            do(os.posix_fallocate, self._fd, self._begin, self._num_bytes)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise

    def _guard(self, operation: str, function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        return self._guarded(operation, lambda: do(function, *arguments, **named))

    def _guarded(self, operation: str, act: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        """What `act` returns; whatever stops it, a signal too, gives the file up."""
        try:
            return act(*arguments, **named)
        except BaseException as error:
            self.abandon()
            if isinstance(error, OSError):
                raise failed(operation, self.path, error) from error
            raise


class NewFile(OpenFile):
    """A file of one writer: it has a temporary name beside `path`, and `commit` renames it."""

    def __init__(self, path: Path, num_bytes: int, *, direct: bool = False) -> None:
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        super().__init__(path, temporary, os.O_EXCL, 0, num_bytes, direct=direct)

    def commit(self, mode: int = FILE_MODE) -> None:
        """Bytes to disk, then the final name. The caller syncs the folder."""
        self._check_complete()
        self._guard("set mode", os.fchmod, self._fd, mode & ~read_umask())
        self._close_durably()
        self._guard("rename", os.rename, self._temporary, self.path)

    def abandon(self) -> None:
        """Close and remove the temporary file; never raises."""
        super().abandon()
        quietly(os.unlink, self._temporary)


def write_file(path: Path, parts: Iterable[Buffer], mode: int = FILE_MODE) -> None:
    """Write a small file whole: temporary name, fsync, rename."""
    parts = list(parts)
    with NewFile(path, sum(memoryview(part).nbytes for part in parts)) as file:
        for part in parts:
            file.write(part)
        file.commit(mode)


def copy_file(source: Path, path: Path) -> None:
    """Copy a regular file byte for byte; links are followed when reading, never made when writing.

    A failure to read is an OSError, one to write a TargetError.
    """
    make_folders(path.parent)
    with source.open("rb") as file:
        num_bytes = os.fstat(file.fileno()).st_size
        with NewFile(path, num_bytes) as new:
            while data := file.read(STEP_BYTES):
                new.write(data)
            new.commit()


def read_file(path: Path, max_bytes: int) -> bytes:
    """What a small file of our own holds, at most `max_bytes`; a link is not followed. Raises TargetError."""
    descriptor = attempt(
        "open", path, os.open, path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    )
    with os.fdopen(descriptor, "rb") as file:
        return attempt("read", path, file.read, max_bytes)


def remove_file(path: Path) -> None:
    """Remove a file; absent is fine."""
    try:
        do(os.unlink, path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise failed("remove", path, error) from error


def is_regular(path: Path) -> bool:
    """Whether `path` leads to a regular file (links followed)."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False
