"""Bytes of files past the page cache: what is proved comes from the disk, and what others keep in memory
stays there.

Read with O_DIRECT where the filesystem allows. Where it doesn't, the pages that were read here are dropped
again, and `forget` drops those from before.
"""

from __future__ import annotations

import errno
import fcntl
import io
import mmap
import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from pp_export.verification.folder import open_regular

_BLOCK_BYTES = mmap.PAGESIZE
"""Every filesystem takes positions and lengths that are multiples of it, if it takes O_DIRECT at all."""


def make_buffer(num_bytes: int) -> memoryview:
    """Memory that `UncachedFile.read` takes for up to `num_bytes` bytes from any position."""
    return memoryview(mmap.mmap(-1, _up(num_bytes) + _BLOCK_BYTES))


class UncachedFile:
    """A regular file, open for reading at any position; for several threads, each with a buffer of its own.

    Opening and reading raise OSError.
    """

    def __init__(self, path: Path) -> None:
        self._file = open_regular(path)
        self._direct = self._set_direct(True)
        self.num_bytes = self._size()

    def read(self, begin: int, num_bytes: int, buffer: memoryview) -> memoryview:
        """Bytes [begin, begin + num_bytes) of the file, fewer where it ends before, as a part of `buffer`."""
        before = begin % _BLOCK_BYTES
        end, done = before + num_bytes, 0
        while done < end:
            at = done // _BLOCK_BYTES * _BLOCK_BYTES  # a part of a block is read again
            count = self._read_blocks(begin - before + at, buffer[at : _up(end)])
            if at + count <= done and self._size() <= begin - before + at + count:
                break
            done = max(done, at + count)
        return buffer[before : max(before, min(done, end))]

    def forget(self) -> None:
        """Ask the kernel to drop all cached pages, if it would answer from them."""
        if not self._direct:
            self._drop(0, 0)

    def __enter__(self) -> UncachedFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def _read_blocks(self, position: int, into: memoryview) -> int:
        try:
            count = _read_once(self._file, position, into)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._direct = self._set_direct(False)  # the filesystem promised more than it can
            count = _read_once(self._file, position, into)
        if count and not self._direct:
            self._drop(position, count)
        return count

    def _size(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    def _set_direct(self, on: bool) -> bool:
        """Switch O_DIRECT; whether it is on."""
        flag = getattr(os, "O_DIRECT", 0)  # a Mac has none
        try:
            flags = fcntl.fcntl(self._file, fcntl.F_GETFL) & ~flag
            fcntl.fcntl(self._file, fcntl.F_SETFL, flags | flag if on else flags)
        except OSError:
            return False
        return on and flag != 0

    def _drop(self, begin: int, num_bytes: int) -> None:
        if hasattr(os, "posix_fadvise"):
            with suppress(OSError):  # it is advice, and some filesystems take none
                os.posix_fadvise(self._file.fileno(), begin, num_bytes, os.POSIX_FADV_DONTNEED)


def _read_once(file: io.FileIO, position: int, into: memoryview) -> int:
    """The one read call, so that a test can fail it."""
    return os.preadv(file.fileno(), [into], position)


def _up(num_bytes: int) -> int:
    return -(-num_bytes // _BLOCK_BYTES) * _BLOCK_BYTES
