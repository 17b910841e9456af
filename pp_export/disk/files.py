"""The one door to the disk for everything that is written.

A file appears under its final name only when all of its bytes are on disk; `publish` does the same for
folders. Every system call that can fail goes through `attempt`, which turns the failure into a TargetError
with the operation and the path.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from pp_export.core.digest import STEP_BYTES
from pp_export.core.errors import TargetError

Buffer = bytes | memoryview
T = TypeVar("T")

DIRECT_STEP_BYTES = 16 << 20
FILE_MODE = 0o666
_DIRECT_BLOCK_BYTES = 4096
_ADVICE = {
    errno.ENOSPC: "free space on the target's filesystem (check quotas, inodes and, on Lustre, `lfs df` too)",
    errno.EDQUOT: "the user's or project's disk quota is used up",
    errno.EFBIG: "a file size limit (ulimit -f) is below the shard size; see --max-shard-size",
    errno.EACCES: "the user who runs the export may not write there",
    errno.EROFS: "the target's filesystem is mounted read-only",
}


def attempt(operation: str, path: Path, call: Callable[[], T]) -> T:
    """What `call` returns; an OSError of it becomes a TargetError that names the operation and the path."""
    try:
        return call()
    except OSError as error:
        raise TargetError(
            f"{operation} failed: {os.strerror(error.errno) if error.errno else error}",
            where={"operation": operation, "file": path},
            advice=_ADVICE.get(error.errno or 0),
        ) from error


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
        self._fd = attempt("create", path, lambda: os.open(temporary, flags, 0o600))
        self._direct = direct and self._set_direct(True)
        if num_bytes:
            self._guard("reserve space", self._reserve)
        if begin:
            self._guard("seek", lambda: os.lseek(self._fd, begin, os.SEEK_SET))

    @abstractmethod
    def commit(self) -> None:
        """Make the bytes durable, and the file what it is to be."""

    def write(self, data: Buffer) -> None:
        """Append `data`."""
        view = memoryview(data).cast("B")
        while len(view):
            done = self._guard("write", partial(self._write_some, view))
            self._written += done
            view = view[done:]

    def _write_some(self, view: memoryview) -> int:
        if self._direct:
            whole = len(view) // _DIRECT_BLOCK_BYTES * _DIRECT_BLOCK_BYTES
            try:
                if whole:
                    return os.write(self._fd, view[: min(whole, DIRECT_STEP_BYTES)])
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
            self._direct = self._set_direct(
                False
            )  # the last bytes, or a filesystem that wants other alignment
        return os.write(self._fd, view[:STEP_BYTES])

    def _set_direct(self, on: bool) -> bool:
        """Switch O_DIRECT; whether it is on."""
        flags = fcntl.fcntl(self._fd, fcntl.F_GETFL) & ~os.O_DIRECT
        try:
            fcntl.fcntl(self._fd, fcntl.F_SETFL, flags | (os.O_DIRECT if on else 0))
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
        self._guard("fsync", lambda: os.fsync(self._fd))
        descriptor, self._fd = self._fd, -1
        self._guard("close", lambda: os.close(descriptor))

    def abandon(self) -> None:
        """Close the file; never raises."""
        descriptor, self._fd = self._fd, -1
        with suppress(OSError):
            if descriptor >= 0:
                os.close(descriptor)

    def _reserve(self) -> None:
        try:
            os.posix_fallocate(self._fd, self._begin, self._num_bytes)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise

    def _guard(self, operation: str, call: Callable[[], T]) -> T:
        try:
            return attempt(operation, self.path, call)
        except TargetError:
            self.abandon()
            raise


class NewFile(OpenFile):
    """A file of one writer: it has a temporary name beside `path`, and `commit` renames it."""

    def __init__(self, path: Path, num_bytes: int, *, direct: bool = False) -> None:
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        super().__init__(path, temporary, os.O_EXCL, 0, num_bytes, direct=direct)

    def commit(self) -> None:
        """Bytes to disk, then the final name. The caller syncs the folder."""
        self._check_complete()
        self._guard("set mode", lambda: os.fchmod(self._fd, FILE_MODE & ~read_umask()))
        self._close_durably()
        self._guard("rename", lambda: os.rename(self._temporary, self.path))

    def abandon(self) -> None:
        """Close and remove the temporary file; never raises."""
        super().abandon()
        with suppress(OSError):
            os.unlink(self._temporary)


def write_file(path: Path, parts: Iterable[Buffer]) -> None:
    """Write a small file whole: temporary name, fsync, rename."""
    parts = list(parts)
    file = NewFile(path, sum(memoryview(part).nbytes for part in parts))
    for part in parts:
        file.write(part)
    file.commit()


def copy_file(source: Path, path: Path) -> None:
    """Copy a regular file byte for byte; links are followed when reading, never made when writing.

    A failure to read is an OSError, one to write a TargetError.
    """
    attempt("make folder", path.parent, lambda: path.parent.mkdir(parents=True, exist_ok=True))
    with source.open("rb") as file:
        num_bytes = os.fstat(file.fileno()).st_size
        new = NewFile(path, num_bytes)
        try:
            while data := file.read(STEP_BYTES):
                new.write(data)
        except OSError:
            new.abandon()
            raise
    new.commit()


def staging_path(target: Path, run_id: str) -> Path:
    """Where run `run_id` builds the folder: hidden, beside the target, so on the same filesystem."""
    return target.with_name(f".{target.name}.pp_export-{run_id}")


def make_parents(target: Path) -> None:
    """Make the folders above `target` that are missing; any rank may."""
    attempt("make folder", target.parent, lambda: target.parent.mkdir(parents=True, exist_ok=True))


def check_space(target: Path, num_bytes: int) -> None:
    """Raise TargetError where the filesystem of `target` says that it has fewer than `num_bytes` free."""
    free = shutil.disk_usage(target.parent).free
    if free < num_bytes:
        raise TargetError(
            "the target's filesystem has too little space",
            where={"folder": target.parent},
            expected=f"{num_bytes:,} bytes",
            got=f"{free:,} bytes free",
            advice=_ADVICE[errno.ENOSPC],
        )


def make_folder(path: Path) -> None:
    """Make a folder that must not exist yet, private until it is published."""
    attempt("make folder", path, lambda: path.mkdir(mode=0o700))


def remove_file(path: Path) -> None:
    """Remove a file of this run; absent is fine."""
    attempt("remove", path, lambda: path.unlink(missing_ok=True))


def remove_folder(path: Path) -> None:
    """Remove a folder of this run with everything in it; absent is fine."""
    if path.exists():
        attempt("remove", path, lambda: shutil.rmtree(path))


def discard_folder(path: Path) -> None:
    """Remove a folder of this run that other processes may still write into, or even be about to publish.

    It loses its name first, so that whatever they do by that name fails.
    """
    if path.exists():
        nameless = path.with_name(f"{path.name}-discarded")
        attempt("rename", path, lambda: os.rename(path, nameless))
        remove_folder(nameless)


def sync_folder(path: Path) -> None:
    """Make the names in `path` durable."""
    descriptor = attempt("open", path, lambda: os.open(path, os.O_RDONLY | os.O_DIRECTORY))
    try:
        attempt("fsync folder", path, lambda: os.fsync(descriptor))
    finally:
        attempt("close folder", path, lambda: os.close(descriptor))


def is_regular(path: Path) -> bool:
    """Whether `path` leads to a regular file (links followed)."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False
