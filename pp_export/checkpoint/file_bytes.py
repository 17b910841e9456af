"""Reads bytes of a file of a checkpoint, and leaves the page cache of the machine as it was.

A checkpoint may be larger than the memory of the machine, and a training job there needs that for itself:
what reading brought into the cache is dropped again. What was there before stays, since someone put it there.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from pp_export.core.errors import CheckpointError

_MAX_PIECES = min(1024, os.sysconf("SC_IOV_MAX"))
_DONT_CACHE = 0x80
"""RWF_DONTCACHE of Linux 6.14 and newer: the kernel drops what this very read brought in."""

_SAMPLES = 16


class FileBytes:
    """A file that is open for reading, by any number of threads. What goes wrong is a CheckpointError."""

    def __init__(self, path: Path) -> None:
        try:
            self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise CheckpointError(f"can't open: {error.strerror}") from error
        self._flags = _DONT_CACHE
        self._is_cached = False

    def close(self) -> None:
        """Close the file."""
        os.close(self.descriptor)

    def read(self, offset: int, into: Sequence[memoryview]) -> None:
        """Fill `into`, one after another, with the bytes from `offset` on."""
        left, at = [piece for piece in into if piece], offset
        while left:
            count = self._read_some(left[:_MAX_PIECES], at)
            if count == 0:
                expected, got = sum(map(len, into)), at - offset
                raise CheckpointError("the file ends inside a tensor", expected=expected, got=got)
            if not self._flags and not self._is_cached:
                os.posix_fadvise(self.descriptor, at, count, os.POSIX_FADV_DONTNEED)
            at += count
            while left and count >= len(left[0]):
                count -= len(left.pop(0))
            if count:
                left[0] = left[0][count:]

    def _read_some(self, into: list[memoryview], offset: int) -> int:
        try:
            if self._flags:
                with suppress(OSError):
                    return os.preadv(self.descriptor, into, offset, self._flags)
                self._is_cached, self._flags = self._look_for_cached(), 0
            return os.preadv(self.descriptor, into, offset)
        except OSError as error:
            raise CheckpointError(f"reading failed: {error.strerror}") from error

    def _look_for_cached(self) -> bool:
        """Whether most of the file is in the cache: some of its bytes are asked for without waiting."""
        size, found = os.fstat(self.descriptor).st_size, 0
        for number in range(_SAMPLES):
            with suppress(OSError):
                byte = [memoryview(bytearray(1))]
                found += os.preadv(self.descriptor, byte, size * number // _SAMPLES, os.RWF_NOWAIT)
        return 2 * found > _SAMPLES
