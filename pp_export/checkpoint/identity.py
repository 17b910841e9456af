"""Whether a save is still the one that it was, without reading all of it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pp_export.core.digest import tensor_digest
from pp_export.core.errors import CheckpointError

_TAIL_BYTES = 64 << 10
_NUM_THREADS = 8


def file_identities(folder: Path) -> Mapping[str, str]:
    """For each file below `folder`: size, time of last change, and a digest of its last 64 KiB, where torch
    keeps the CRC-32s of what it has stored. A file that changes in between has another time of change.
    """
    try:
        with ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="identity") as pool:
            return dict(
                pool.map(lambda path: (path.relative_to(folder).as_posix(), _of(path)), _files(folder))
            )
    except OSError as error:
        raise CheckpointError(
            f"the checkpoint can't be read: {os.strerror(error.errno or 0)}",
            where={"operation": "look at", "file": error.filename},
        ) from error


def _files(folder: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        folders.sort()
        yield from (path for name in sorted(names) if (path := Path(root, name)).is_file())


def _of(path: Path) -> str:
    with path.open("rb") as file:
        found = os.fstat(file.fileno())
        file.seek(max(0, found.st_size - _TAIL_BYTES))
        tail = tensor_digest(file.read(_TAIL_BYTES))
    return f"{found.st_size} bytes, changed at {found.st_mtime_ns}, tail {tail}"
