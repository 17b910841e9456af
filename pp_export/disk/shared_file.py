"""One file, written by several ranks side by side: each writes the whole blocks of its own range.

A client of a network filesystem may write back a whole page of which it changed a few bytes, so no two ranks
write into one block. What is left of a range in its first and last block, its *edges*, one rank writes for
all at the end. Until then the file has a name in the staging folder that nobody else knows.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from pp_export.core.errors import TargetError
from pp_export.disk.calls import attempt
from pp_export.disk.files import FILE_MODE, OpenFile, read_umask

BLOCK_BYTES = 64 << 10
"""A multiple of every page size."""


def whole_blocks(begin: int, end: int) -> tuple[int, int]:
    """The part of the range [begin, end) that is whole blocks; empty, at `end`, where it has none."""
    first = -(-begin // BLOCK_BYTES) * BLOCK_BYTES
    last = end // BLOCK_BYTES * BLOCK_BYTES
    return (first, last) if first <= last else (end, end)


class RangeFile(OpenFile):
    """The whole blocks of [begin, end) of the file that is to be `path`; other ranks have it open too.

    Only these blocks are reserved: where the filesystem can't reserve, the C library writes into each.
    """

    def __init__(self, path: Path, begin: int, end: int) -> None:
        first, last = whole_blocks(begin, end)
        super().__init__(path, growing_file(path), 0, first, last - first, direct=True)

    def commit(self) -> None:
        """Bytes to disk."""
        self._check_complete()
        self._close_durably()


def join_ranges(path: Path, num_bytes: int, edges: Iterable[tuple[int, bytes]]) -> None:
    """Write the edges, each at its place, and give the file of `num_bytes` its name; called by one rank, when
    all ranges are committed. The caller syncs the folder.
    """
    temporary = growing_file(path)
    descriptor = attempt("open", path, os.open, temporary, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        for begin, data in edges:
            _write_at(descriptor, path, begin, data)
        size = attempt("look at", path, os.fstat, descriptor).st_size
        if size != num_bytes:
            raise TargetError(
                "a file of several ranges has another size than planned",
                where={"file": path},
                expected=num_bytes,
                got=size,
            )
        attempt("set mode", path, os.fchmod, descriptor, FILE_MODE & ~read_umask())
        attempt("fsync", path, os.fsync, descriptor)
    finally:
        attempt("close", path, os.close, descriptor)
    attempt("rename", path, os.rename, temporary, path)


def _write_at(descriptor: int, path: Path, begin: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        done = attempt("write", path, os.pwrite, descriptor, view, begin)
        view, begin = view[done:], begin + done


def growing_file(path: Path) -> Path:
    """Where the ranges of `path` are until they are joined."""
    return path.with_name(f".{path.name}.ranges.tmp")
